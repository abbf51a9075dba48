from .layers import linear_layers as linear_layers
from .loading import load_model as load_model
from .loading import revision_of as revision_of
from .names import EMBEDDED as EMBEDDED
from .symmetry import permute_heads as permute_heads
from .symmetry import permute_neurons as permute_neurons
from .weights import Weight as Weight
from .weights import list_weights as list_weights
