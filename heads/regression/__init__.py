"""Regression: K numbers an image, such as an age or a cardiothoracic ratio."""

from heads.regression.head import RegressionHead as RegressionHead
