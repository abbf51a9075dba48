from .checking import check as check
from .checking import exercise as exercise
from .checking import solution as solution
from .predictions.asking import predict as predict
from .predictions.asking import prediction_table as prediction_table
from .predictions.files import class_predictions as class_predictions
from .predictions.files import save_predictions as save_predictions
from .predictions.prediction import Prediction as Prediction
