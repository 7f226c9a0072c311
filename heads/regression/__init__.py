"""Regression: K numbers an image, such as an age or a cardiothoracic ratio."""

from .head import RegressionHead as RegressionHead
