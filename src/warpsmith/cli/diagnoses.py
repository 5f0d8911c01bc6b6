# SPDX-License-Identifier: Apache-2.0
"""Everything that ``warpsmith doctor`` can find wrong: when, in which words, and what to do.

``docs/troubleshooting.md`` is generated from these texts (``python -m warpsmith.cli.troubleshooting``).
"""

from __future__ import annotations

from dataclasses import dataclass

from warpsmith.catalog.spec import Finding

_REINSTALL = "pip install --force-reinstall warpsmith, in a fresh virtual environment if that does not help"
_DRIVER = "install the NVIDIA driver R580 or newer"
_BUILD = "pip install 'warpsmith[build]'"


@dataclass(frozen=True)
class Diagnosis:
    """One thing that can be wrong.

    Attributes
    ----------
    code
        The finding's code.
    when
        When it is found, as a sentence.
    message, fix
        The finding's texts, with names in braces for what is only known then.
    """

    code: str
    when: str
    message: str
    fix: str

    def finding(self, subject: str, **values: object) -> Finding:
        """The finding, about `subject`."""
        texts = {name: str(value) for name, value in values.items()}
        return Finding(self.code, subject, self.message.format(**texts), self.fix.format(**texts))


_ALL = (
    Diagnosis(
        "driver",
        "There is a GPU, and no driver that answers: none is installed, or a container was started without it.",
        "there is a GPU ({nodes}), but its driver cannot be used: {error}",
        f"{_DRIVER}; in a container, run it with the GPU (--gpus all)",
    ),
    Diagnosis(
        "driver-too-old",
        "The driver is older than the kernels' compiler: it would refuse to load them.",
        "the driver is for {version}, but kernels need {needed} (R580)",
        _DRIVER,
    ),
    Diagnosis(
        "cuda-bindings",
        "The Python package that talks to the driver is missing.",
        "the package cuda-bindings is not installed, so no GPU can be used",
        "pip install 'cuda-bindings>=12.9.4,<14'",
    ),
    Diagnosis(
        "devices",
        "The driver is there, but shows no device.",
        "there is a GPU ({nodes}), but it cannot be used: {error}",
        "look at nvidia-smi and CUDA_VISIBLE_DEVICES",
    ),
    Diagnosis(
        "device-unsupported",
        "A device has a compute capability that Warpsmith has no kernels for.",
        "{error}",
        "use another device, or a newer warpsmith",
    ),
    Diagnosis(
        "device-failing",
        "The driver lists a device, and fails when asked about it.",
        "{error}",
        "look at nvidia-smi; the driver has to be installed and running",
    ),
    Diagnosis(
        "wrong-target",
        "There are bundles, and none of them is for the device.",
        "{device} runs none of the bundles that are here: they are for {targets}",
        "build or install the one for it: warpsmith build --arch {capability} --out DIR",
    ),
    Diagnosis(
        "bundle-partial",
        "A bundle for the device was built for a part of the catalog, and something outside of it is wanted.",
        "{path} runs on {device}, but was built {lacks}",
        "that is no fault if it is not needed; else build again with it named in --modules, --formats or --models, or "
        "without these: warpsmith build --arch {capability} --out DIR",
    ),
    Diagnosis(
        "kernels-missing",
        "A device finds no kernel for something that is promised for it: in no bundle, and not by compiling.",
        "{device} has no kernel for {missing} operations and formats: no bundle has them, {why}",
        f"warpsmith build --arch {{capability}} --out DIR and WARPSMITH_BUNDLE_PATH=DIR; or {_BUILD} and "
        "WARPSMITH_JIT=allow",
    ),
    Diagnosis(
        "bundle-unreadable",
        "A bundle cannot be opened: it is gone, damaged, newer than this package, or without the signature that "
        "WARPSMITH_REQUIRE_SIGNATURE asks for.",
        "{place}: {reason}",
        "build or install it again, or take it out of the search",
    ),
    Diagnosis(
        "bundle-damaged",
        "A bundle opens, but is not whole: an entry is damaged or missing, or made from another source.",
        "{path} has {count} findings, the first: {first}",
        "warpsmith audit {path} names them all",
    ),
    Diagnosis(
        "nvrtc-missing",
        "A kernel would have to be compiled, and the compiler is not installed.",
        "NVRTC is not installed, so the kernels that no bundle has cannot be compiled: {error}",
        f"{_BUILD}; or build a bundle elsewhere: warpsmith build --arch {{capability}} --out DIR",
    ),
    Diagnosis(
        "toolchain",
        "NVRTC is installed, but is too old, does not load, or does not match nvdisasm.",
        "NVRTC is installed, but unusable: {error}",
        "pip install -U 'warpsmith[build]'",
    ),
    Diagnosis(
        "nvrtc-shadowed",
        "LD_LIBRARY_PATH has a library named as one of NVRTC's own, which the loader would take in its place.",
        "{other}, on LD_LIBRARY_PATH, hides {own}, which NVRTC {version} came with",
        "take {folder} out of LD_LIBRARY_PATH for this program",
    ),
    Diagnosis(
        "cache-readonly",
        "The compile cache cannot be written. Nothing fails; kernels are compiled anew in each process.",
        "the compile cache {folder} cannot be written, so kernels compiled on demand are not kept",
        "make {nearest} a folder that this user can write, or set WARPSMITH_CACHE_DIR to one",
    ),
    Diagnosis(
        "cache-unreadable",
        "The compile cache is there and cannot be read. Nothing fails; what is in it is compiled again.",
        "the compile cache {folder} cannot be read: {reason}",
        "give this user the right to read it, or set WARPSMITH_CACHE_DIR to another folder",
    ),
    Diagnosis(
        "cache-damaged",
        "Entries of the compile cache are damaged. Nothing fails; each is compiled again when it is next wanted.",
        "{count} entries of the compile cache {folder} are damaged, the first: {first}",
        "delete {folder}; if it happens again, look at the disk and at who writes there",
    ),
    Diagnosis(
        "settings",
        "An environment variable of Warpsmith's has a value that cannot be used.",
        "{error}",
        "correct the variable that the message names, or unset it",
    ),
    Diagnosis(
        "copies",
        "Python finds several copies of the package, and imports the first.",
        "there are {count} copies of warpsmith on sys.path: {own} is used, it hides {others}",
        "remove the copies that are not wanted: {others}",
    ),
    Diagnosis(
        "version-mixed",
        "The code that runs is not the version that is installed.",
        "the code is warpsmith {version}, but installed is {installed}",
        _REINSTALL,
    ),
    Diagnosis(
        "probe-failed",
        "Looking itself failed, which nothing of the above does.",
        "looking at {name} failed: {error}",
        _REINSTALL,
    ),
)
DIAGNOSES: dict[str, Diagnosis] = {d.code: d for d in _ALL}
"""Every diagnosis by its code, in the order of the documentation."""


def found(code: str, subject: str, **values: object) -> Finding:
    """A finding in the words of its diagnosis."""
    return DIAGNOSES[code].finding(subject, **values)
