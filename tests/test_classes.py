"""Which classes a teacher knows, and an ImageNet teacher on ten of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastanc.models import zoo
from fastanc.models.classes import pick_classes, read_columns
from fastanc.models.ensemble import Ensemble, ensemble
from fastanc.models.probe import checked
from fastanc.models.taps import Tapped

MEAN, STD = (0.5, 0.25, 0.5), (0.25, 0.5, 0.125)


@pytest.mark.parametrize(
    ("name", "px"),
    [
        ("resnet8", 32),
        ("torchvision:resnet18", 64),
        ("torchvision:squeezenet1_1", 64),
        ("timm:mobilenetv3_small_050", 64),
    ],
)
def test_picked_classes_are_columns_of_the_whole(name: str, px: int) -> None:
    """Heads of three kinds: a linear layer, none at all, a 1x1 convolution or linear layer of a library's."""
    network = zoo.build(name, num_classes=12, image_px=px, mean=MEAN, std=STD).eval()
    columns = [7, 0, 11]
    picked = pick_classes(network, columns).eval()
    images = torch.randint(0, 256, (2, 3, px, px), dtype=torch.uint8)
    with torch.no_grad():
        whole, part = network(images), picked(images)
    torch.testing.assert_close(part.logits, whole.logits[:, columns])
    assert picked.num_classes == 3
    assert (picked.head is None) == (network.head is None)
    if network.head is not None:
        torch.testing.assert_close(part.features, whole.features)
        assert picked.head.out_features == 3
    assert network(images).logits.shape == (2, 12)  # the whole one is left as it was


def test_a_class_that_the_teacher_does_not_have_is_named() -> None:
    network = zoo.build("resnet8", num_classes=12)
    with pytest.raises(ValueError, match=r"teacher\.classes names class 12, but resnet8 knows 0 to 11"):
        pick_classes(network, [0, 12])


def test_columns_are_numbers_or_looked_up_in_a_file(tmp_path: Path) -> None:
    assert read_columns("3, 0,1", ["a", "b", "c"], 5) == [3, 0, 1]
    with pytest.raises(ValueError, match="has 2 numbers for the 3 classes"):
        read_columns("3,0", ["a", "b", "c"], 5)
    names = tmp_path / "classes.tsv"
    names.write_text("0\tn01440764\ttench\n1\tn01443537\tgoldfish\n2\tn02106662\tGerman shepherd, Alsatian\n")
    assert read_columns(str(names), ["n02106662", "n01440764"], 3) == [2, 0]
    assert read_columns(str(names), ["goldfish"], 3) == [1]
    with pytest.raises(ValueError, match=r"lacks 1 of the set's 2 classes, 'cat' first"):
        read_columns(str(names), ["goldfish", "cat"], 3)
    with pytest.raises(FileNotFoundError, match="there is no file nowhere"):
        read_columns("nowhere.txt", ["a"], 3)
    plain = tmp_path / "plain.txt"
    plain.write_text("\ufeffred fox\nGerman shepherd, Alsatian\n")
    assert read_columns(str(plain), ["German shepherd", "red fox"], 2) == [1, 0]


def test_a_file_of_classes_that_does_not_fit_is_told(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("wnid\nfox\ncrane\n")
    with pytest.raises(ValueError, match="has 3 lines for the teacher's 2 classes: .* without a header"):
        read_columns(str(file), ["fox"], 2)
    file.write_text("fox\n0\tcrane\n1\tcrane\n")
    with pytest.raises(ValueError, match="has 'crane' in more than one line"):
        read_columns(str(file), ["crane"], 3)
    with pytest.raises(ValueError, match=r"lacks 1 of the set's 1 classes, '1' first"):
        read_columns(str(file), ["1"], 3)  # a number of a line is no name
    with pytest.raises(ValueError, match="gives 'b' and 'c' the same class 1"):
        read_columns("0,1,1", ["a", "b", "c"], 3)


def test_weights_say_how_many_classes_they_know(tmp_path: Path) -> None:
    assert zoo.own_classes("torchvision:resnet18@IMAGENET1K_V1", None) == 1000
    assert zoo.own_classes("timm:resnet18.a1_in1k@pretrained", None) == 1000
    assert zoo.own_classes("resnet8", None) is None
    network = zoo.build("resnet8", num_classes=37)
    zoo.save_weights(network, tmp_path / "own.safetensors")
    assert zoo.own_classes("resnet8", tmp_path / "own.safetensors") == 37
    for name, px in (("resnet20_v1", 32), ("torchvision:resnet18", 64), ("timm:mobilenetv3_small_050", 64)):
        torch.save(zoo.build(name, num_classes=41, image_px=px).bare.state_dict(), tmp_path / "bare.pt")
        assert zoo.own_classes(name, tmp_path / "bare.pt", image_px=px) == 41


def test_weights_of_another_network_are_refused_whatever_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    small = zoo.build("resnet8", num_classes=7).bare.state_dict()
    wide = zoo.build("wrn-10-2", num_classes=7).bare.state_dict()
    others: dict[str, str] = {
        "resnet14": r"it lacks layer1\.1\.bn1\.weight.* more; name the network that it was made with",
        "resnet8_v1": "does not fit: ",
        "wrn-10-1": r"conv1\.weight is \[16, 3, 3, 3\] in the file|is \[32, .*\] in the file and \[16, ",
    }
    for name, said in others.items():
        torch.save({"state_dict": wide if name.startswith("wrn") else small}, path)
        with pytest.raises(ValueError, match=said) as refused:
            zoo.own_classes(name, path)
        assert str(path) in str(refused.value)
    torch.save(small, path)
    assert zoo.own_classes("resnet8", path) == 7


def test_a_head_of_other_classes_is_replaced_and_an_equal_one_kept(tmp_path: Path) -> None:
    network = zoo.build("resnet8", num_classes=10)
    torch.save(network.bare.state_dict(), tmp_path / "bare.pt")
    same = zoo.build("resnet8", num_classes=10, weights=tmp_path / "bare.pt", new_head=True)
    assert torch.equal(same.bare.fc.weight, network.bare.fc.weight)
    other = zoo.build("resnet8", num_classes=7, weights=tmp_path / "bare.pt", new_head=True)
    assert other.bare.fc.weight.shape == (7, 64)
    assert torch.equal(other.bare.conv1.weight, network.bare.conv1.weight)
    with pytest.raises(
        ValueError, match=r"fc\.weight is \[10, 64\] in the file and \[7, 64\] in the network"
    ):
        zoo.build("resnet8", num_classes=7, weights=tmp_path / "bare.pt")


def test_an_ensemble_is_the_mean_of_its_members_each_by_its_own_statistics() -> None:
    torch.manual_seed(0)
    one = zoo.build("resnet8", num_classes=5, mean=MEAN, std=STD).eval()
    bare = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5))
    both = zoo.tap(ensemble([one, bare]), image_px=32).eval()
    assert isinstance(both.bare, Ensemble)
    assert both.head is None
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    scaled = images.double() / 255
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in (zoo.IMAGENET_MEAN, zoo.IMAGENET_STD)
    )
    with torch.no_grad():
        second = bare.double()((scaled - mean) / std)
        bare.float()
        expected = (one(images).logits + second.float()) / 2
        torch.testing.assert_close(both(images).logits, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="empty list"):
        ensemble([])
    with pytest.raises(ValueError, match="no weights"):
        ensemble(["torchvision:resnet18"])


def test_a_given_network_is_normalised_as_imagenet_s_are_unless_said_otherwise() -> None:
    """In a loop of one's own as in compress()."""
    bare = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    assert zoo.tap(bare, image_px=4).mean == zoo.IMAGENET_MEAN
    assert zoo.tap(bare, image_px=4, default_mean=MEAN, default_std=STD).std == STD
    grey = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 4, 5))
    assert zoo.tap(grey, image_px=4, in_channels=1).mean == (0.5,)


def test_a_given_network_is_checked_like_any_other() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
            )
            self.a, self.b = torch.nn.Linear(8, 6), torch.nn.Linear(8, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x)
            return (self.a(x) + self.b(x)) / 2

    tapped = zoo.tap(Two(), image_px=16)
    assert tapped.num_classes == 6
    assert tapped.head is None  # two averaged heads are no one linear map
    assert isinstance(checked(tapped), Tapped)
    with pytest.raises(ValueError, match=r"object:.*Linear does not take 3 x 16 x 16 images"):
        zoo.tap(torch.nn.Linear(3, 4), image_px=16)


def test_an_ensemble_of_grey_images() -> None:
    torch.manual_seed(0)
    bare = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 36, 5))
    one = zoo.build("resnet8", num_classes=5, in_channels=1, image_px=8, mean=(0.1,), std=(0.3,)).eval()
    both = zoo.tap(ensemble([one, bare]), image_px=8, in_channels=1).eval()
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = (one(images).logits + bare((images / 255 - 0.5) / 0.25)) / 2
        torch.testing.assert_close(both(images).logits, expected, rtol=1e-4, atol=1e-4)
