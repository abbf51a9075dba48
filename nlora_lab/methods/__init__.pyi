from .attachment import attach as attach
from .parameters import parameter_table as parameter_table
from .parameters import trainable_parameters as trainable_parameters
from .table import METHODS as METHODS
from .table import Method as Method
from .table import variant as variant
