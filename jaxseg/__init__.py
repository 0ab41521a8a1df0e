"""Fast multi-seed transfer-learning studies of fully convolutional networks for medical image segmentation."""
