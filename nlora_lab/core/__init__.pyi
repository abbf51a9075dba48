from .devices import find_device as find_device
from .errors import FitError as FitError
from .errors import InputError as InputError
from .errors import ModelError as ModelError
from .errors import StoreError as StoreError
from .tables import save_table as save_table
