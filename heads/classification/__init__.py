"""Classification of the image's embedding: yes/no labels, one of K classes, or one of K grades."""

from heads.classification.head import ClassificationHead as ClassificationHead
