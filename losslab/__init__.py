__version__ = "0.0.1"

from losslab import viz
from losslab.core import *
from losslab.labels import *
from losslab.categorical import *
