# SPDX-License-Identifier: Apache-2.0
"""Running kernels: the driver, the devices, finding and loading cubins, and the launch. Importing it touches no GPU."""
