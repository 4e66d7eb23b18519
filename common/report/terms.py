"""What the figures of the reports mean, in words; docs/results.md has more."""

from common.benchmark.results import Document
from common.scoring.percentiles import CALLS_FOR_P90, CALLS_FOR_P99
from common.scoring.statistics import FEWEST_IMAGES, RESAMPLES

TERMS = {
    "mIoU": "One confusion matrix over all images; the mean IoU of the classes that occur. That of one image: of the "
    "classes that its mask holds.",
    "95 % interval": f"Bootstrap over images: they are drawn anew, with replacement, {RESAMPLES} times. Below "
    f"{FEWEST_IMAGES} images none is given. Frames of one drive are alike, and count as images all the same.",
    "Difference": "The model's mIoU minus the reference's, on the same images, the same draws and the classes of the "
    "masks; significant where its interval excludes 0.",
    "mIoU smoothed": "For each image (intersection + 1) / (union + 1) over the class maps together, averaged over the "
    "images. Larger than the standard mIoU and not comparable with it.",
    "Latency": "One image from the network's input to the logits, after warm-up, without garbage collection. The "
    f"models take turns in blocks of images. No call is left out. p90 takes {CALLS_FOR_P90} calls, p99 "
    f"{CALLS_FOR_P99}.",
    "Outliers": "Calls slower than the median by more than five standard deviations, estimated from the median "
    "absolute deviation (MAD).",
    "Spread of blocks": "Largest minus smallest median of a block, by the median of all: how much the machine drifted.",
    "End to end": "Image file to class map: decode, cut, resize, normalise, the network, and the largest logit; the "
    "sum of their clocks.",
    "Cold start": "Opening the file and the first inference, once, in a process of its own with the libraries loaded "
    "and the file in the system's page cache.",
    "Memory": "Peak resident memory of a process that loads and runs this model alone; model: less what was resident "
    "before it was loaded.",
}

CHANGE = (
    "The model's figure minus the reference's, on the same images and the same draws; significant where its interval "
    "excludes 0."
)
OF_MASKS = ("mIoU", "95 % interval", "Difference", "mIoU smoothed")  # that a benchmark without masks has none of
OF_OUTPUTS = {
    "SQNR": "Signal-to-quantization-noise ratio, 10 log10(sum of reference^2 / sum of difference^2) over all numbers "
    "of an output and all images, in dB; 200 where there is no difference. 6 dB are one bit.",
    "Equal": "Share of places at which a model says what the reference says: the same class, or for independent logits "
    "the same sign. Numbers such as depths have none.",
    "Largest difference": "Of one number of an output from the reference's, in the output's own unit; the range is the "
    "largest minus the smallest value of the reference.",
}


# by the task of a network that gives no map of classes
OF_LABELS = {
    "segmentation": {"IoU": "Pixels above 0 that the masks show, by those that are either, over all images."},
    "lanes": {
        "Mean IoU": "Of the lane maps, each by itself: pixels above 0 that the labels show, by those that are either, "
        "over all images; labels are resized to the output. A lane that no label shows is left out.",
    },
    "depth": {
        "Depth": "Relative depth is first scaled and shifted for each image so that it fits the label best in least "
        "squares (Ranftl et al. 2020); the figures are means over the images.",
        "Absolute relative error": "Of |depth - label| / label; lower is better.",
        "RMSE": "Square root of the mean squared difference, in the label's unit; lower is better.",
    },
    "steering": {"Mean error": "Of |angle - label| in degrees, the angle being the largest bin's; lower is better."},
    "detection": {
        "mAP at IoU 0.5": "Mean over the classes of the area below the precision that is at least reached at each "
        "recall; an object is found where a box of its class has an IoU of 0.5 with it, after non-maximum suppression.",
    },
}


def terms_of(document: Document) -> dict[str, str]:
    """Those that a report uses."""
    if "agreement" not in document:
        return TERMS
    if "score" in document:
        of_scores = OF_LABELS[document["score"]["task"]] | {
            "95 % interval": TERMS["95 % interval"],
            "Difference": CHANGE,
        }
        return of_scores | OF_OUTPUTS | {term: meaning for term, meaning in TERMS.items() if term not in OF_MASKS}
    return OF_OUTPUTS | {term: meaning for term, meaning in TERMS.items() if term not in OF_MASKS}
