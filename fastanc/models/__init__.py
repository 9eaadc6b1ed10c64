"""Networks: teachers, students, discriminators, generators, and the taps that read them."""
