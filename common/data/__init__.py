"""Images and masks: labels, pairs, transforms, datasets, cache, and drawing them."""
