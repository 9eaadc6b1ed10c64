"""Class folders of a tar that is made here: names that are safe as folders, and a member that says their classes.

Sorted folders say the order of the classes by themselves. Where they cannot (another numbering, a name with a slash,
a class without images), the tar's first member `classes.json` does, and it is indexed alike anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from fastanc.pipelines.index.sources import is_rubbish_folder
from fastanc.pipelines.index.sources.archive import CLASSES


def class_folders(classes: Sequence[str]) -> list[str]:
    """Return the folder of every class: its name; numbers get leading zeros, so that their order stays."""
    if list(classes) == [str(k) for k in range(len(classes))]:
        return [name.zfill(len(classes[-1])) for name in classes]
    folders, taken = list[str](), set[str]()
    for number, name in enumerate(classes):
        folder = re.sub(r"[/\\\0]", "_", name).strip()
        if not folder or is_rubbish_folder(folder):
            folder = f"_{folder}"
        if folder in taken:
            folder = f"{folder}_{number}"
        taken.add(folder)
        folders.append(folder)
    return folders


NUMBERED = json.dumps({"numbered": True}).encode()
"""What CLASSES holds where the folders are class numbers."""
ESCAPED = json.dumps({"escaped": True}).encode()
"""What CLASSES holds where the folders are `escaped` names."""


def escaped(name: str) -> str:
    """Return a class's name as a folder from which it can be told again (percent-encoded where it must be)."""
    folder = name.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C").replace("\0", "%00")
    return (
        f"%{ord(folder[0]):02X}{folder[1:]}" if is_rubbish_folder(folder) and ord(folder[0]) < 128 else folder
    )


def classes_member(classes: Sequence[str], folders: Sequence[str]) -> bytes:
    """Return what the member CLASSES holds."""
    return json.dumps({"classes": list(classes), "folders": list(folders)}, ensure_ascii=False).encode()


def say_themselves(classes: Sequence[str], folders: Sequence[str], with_images: int) -> bool:
    """Tell whether the folders alone say all classes and their order."""
    numbers = list(classes) == [str(k) for k in range(len(classes))]
    return (
        with_images == len(classes)
        and sorted(folders) == list(folders)
        and (numbers or list(classes) == list(folders))
    )


__all__ = ["CLASSES", "ESCAPED", "NUMBERED", "escaped", "class_folders", "classes_member", "say_themselves"]
