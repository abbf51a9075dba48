from .encoding import few_shot as few_shot
from .generated import TASKS as TASKS
from .registry import EXTERNAL_TASKS as EXTERNAL_TASKS
from .registry import load_task as load_task
from .task import Task as Task
