# SPDX-License-Identifier: Apache-2.0
"""The command line: one file a command."""


def main() -> None:
    """Run the command line; the process ends with 0 success, 1 a finding, 2 bad usage, 3 internal or environment."""
    from warpsmith.cli.app import app

    app()
