from .page import Lab as Lab
from .page import write_page as write_page
from .recorded import recorded_data as recorded_data
