"""The score of a network that gives no map of classes, by its task."""

from collections.abc import Callable, Sequence

from common.scoring.depth import Depth
from common.scoring.detection import Detection
from common.scoring.figures import Score
from common.scoring.independent_maps import IndependentMaps
from common.scoring.steering import Steering
from models import Network

SCORES: dict[str, Callable[[str, Sequence[str]], Score]] = {
    "segmentation": IndependentMaps,
    "lanes": IndependentMaps,
    "depth": Depth,
    "steering": Steering,
    "detection": Detection,
}


def score_of(name: str, network: Network) -> Score:
    """That of the network `name`, by its first output; of angles by one for each image, where there are as many.

    Raises:
        ValueError: it gives a map of classes, there is no score for its task, or two of its classes share a key.
    """
    if network.maps_classes or network.task not in SCORES:
        raise ValueError(f"{name}: there is no score for its task {network.task!r}; there are {', '.join(SCORES)}")
    if network.task == "depth":
        names: Sequence[str] = ()
    elif network.task == "steering":
        outputs = list(network.outputs or ("output",))
        names = outputs if len(outputs) == network.images else outputs[:1]
    else:
        names = network.classes or ("foreground",)
    score = SCORES[network.task](network.task, names)
    keys = [figure.key for figure in score.figures]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"{name}: two of its classes are called {twice[0]} in results; give them other names")
    return score
