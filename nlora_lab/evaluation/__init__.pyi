from .saved import measure_saved as measure_saved
from .scoring import Answer as Answer
from .scoring import accuracy as accuracy
from .scoring import answers as answers
from .scoring import mean_loss as mean_loss
from .scoring import measure as measure
