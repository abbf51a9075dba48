from .page import Lab as Lab
from .page import write_page as write_page
from .recorded import recorded_data as recorded_data
from .sections import fine_tuning_lab as fine_tuning_lab
from .sections import nystrom_lab as nystrom_lab
from .sections import spectrum_map as spectrum_map
from .sections import write_lab as write_lab
from .sections import write_labs as write_labs
