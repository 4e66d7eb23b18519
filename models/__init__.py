"""What a network is to the scripts. Those that they know by name are in `models.family`, which brings PyTorch."""

from models.network import Network, check_input_hw

__all__ = ["DEFAULT_NETWORK", "Network", "check_input_hw"]

DEFAULT_NETWORK = "SceneSeg"  # of the scripts that can do without a name
