"""The teacher's rows on disk; nothing here runs a teacher."""
