"""Classification of the image's embedding: yes/no labels, one of K classes, or one of K grades."""

from .head import ClassificationHead as ClassificationHead
