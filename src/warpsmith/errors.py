# SPDX-License-Identifier: Apache-2.0
"""Every exception that Warpsmith raises on purpose, in one tree.

::

    WarpsmithError
    ├── InvalidArgumentError (ValueError)     what a caller passed does not fit
    │   ├── TargetError                       an architecture that is not one
    │   └── FormatError                       a format, layout or QTensor part that does not fit
    ├── CatalogError                          the catalog contradicts itself or its promises
    ├── CompileError                          NVRTC refused the source
    │   ├── ToolchainError                    NVRTC or nvdisasm missing, too old or mixed
    │   ├── WorkerError                       a compile worker died
    │   └── CubinCheckError                   it compiled, but not to what the catalog asks for
    ├── StoreError                            the compile cache cannot be written
    ├── BundleError                           a bundle that cannot be used
    │   ├── ManifestError                     its manifest is damaged or newer than this package
    │   ├── SignatureError                    unsigned, signed by another key, or changed since
    │   ├── ElfError                          a cubin that is not the ELF it should be
    │   └── DigestError                       bytes that do not match their digest
    ├── MissingKernelError                    dispatch found no usable cubin
    ├── NotLoadedError                        a kernel would have to be loaded where that is not possible
    ├── UnsupportedError                      the promise table says that this is not supported, and why
    ├── DriverError                           the CUDA driver is missing, too old or failed a call
    └── EvidenceError                         a claim that the ledger does not carry
"""

from __future__ import annotations


class WarpsmithError(Exception):
    """Base class of all errors raised by Warpsmith."""


class InvalidArgumentError(WarpsmithError, ValueError):
    """An argument does not fit; the message says what was given and what was expected."""


class TargetError(InvalidArgumentError):
    """A target, capability or architecture list that cannot be understood."""


class FormatError(InvalidArgumentError):
    """A format, scale layout or ``QTensor`` part that does not fit the operation."""


class CatalogError(WarpsmithError):
    """The catalog contradicts itself, its tuning tables or its promises."""


class CompileError(WarpsmithError):
    """NVRTC refused a source. The message carries the compiler's full log."""


class ToolchainError(CompileError):
    """NVRTC or nvdisasm is missing, too old, or not the version that was asked for."""


class WorkerError(CompileError):
    """A compile worker died and died again when its job was retried alone."""


class CubinCheckError(CompileError):
    """A cubin compiled, but is empty, spills, is too large or lacks its instructions."""


class StoreError(WarpsmithError):
    """The compile cache could not be written; what it held before is intact."""


class BundleError(WarpsmithError):
    """A bundle that cannot be read or used."""


class ManifestError(BundleError):
    """A bundle's manifest is missing, damaged, or of a newer schema."""


class SignatureError(BundleError):
    """A bundle without the signature that is asked for: unsigned, signed by another key, or changed since."""


class ElfError(BundleError):
    """A cubin that is not a well-formed CUDA ELF of the expected target."""


class DigestError(BundleError):
    """Bytes that do not match the digest they are filed under."""


class MissingKernelError(WarpsmithError):
    """Dispatch found no usable cubin; the message lists what was searched and each reason."""


class NotLoadedError(WarpsmithError):
    """A kernel would have to be loaded where loading is not possible."""


class UnsupportedError(WarpsmithError):
    """The promise table says that this problem is not supported on this device, and why."""


class DriverError(WarpsmithError):
    """The CUDA driver is missing, too old, or failed a call."""


class EvidenceError(WarpsmithError):
    """A claim about hardware that the evidence ledger does not carry."""
