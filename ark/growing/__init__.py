"""A new run that starts from another run's weights, matched by name.

`config`: what the user says (`--init_from`, `--init_names`, `--init_which`); `source`: the weights
and what they belong to; `loading`, `foreign`: where they come from; `parts`, `heads`, `backbone`:
what of each part fits; `options`: an architecture as options to paste; `table`: what became of
every tensor; `grow`: all of it, from a network and a source; `untrained`: what must not be.
"""

from ark.growing.config import InitConfig as InitConfig
from ark.growing.grow import Growth as Growth
from ark.growing.grow import grow as grow
from ark.growing.loading import load_source as load_source
from ark.growing.source import Source as Source
from ark.growing.untrained import check_trained as check_trained
