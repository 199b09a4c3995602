"""Messages to the text of a prompt, by the model's own template, and where its answers end."""

from .conv_template import ConvTemplate, SeparatorRule
from .jinja import JinjaTemplate
from .message import Message
from .registry import named_template
from .stop import stop_token_ids
from .template import TEMPLATE_FILES, ChatTemplate, read_conv_template, special_tokens

__all__ = [
    "TEMPLATE_FILES",
    "ChatTemplate",
    "ConvTemplate",
    "JinjaTemplate",
    "Message",
    "SeparatorRule",
    "named_template",
    "read_conv_template",
    "special_tokens",
    "stop_token_ids",
]
