from .external import few_shot as few_shot
from .generated import TASKS as TASKS
from .registry import REAL_TASKS as REAL_TASKS
from .registry import load_task as load_task
from .task import Task as Task
