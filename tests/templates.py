"""Chat templates of models that think, which treat reasoning as published ones do."""

_PARTS = r"""
{%- macro render(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- elif part.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
      {%- else -%}{{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""

_HISTORY = (
    _PARTS
    + r"""
{%- set last = namespace(query=messages|length - 1, found=false) -%}
{%- for message in messages[::-1] -%}
  {%- if message.role == 'user' and not last.found -%}
    {%- set said = render(message.content) -%}
    {%- if not (said.startswith('<tool_response>') and said.endswith('</tool_response>')) -%}
      {%- set last.found = true -%}
      {%- set last.query = messages|length - 1 - loop.index0 -%}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- set content = render(message.content) -%}
  {%- if message.role == 'assistant' -%}
    {%- set reasoning = '' -%}
    {%- if message.reasoning_content is string -%}
      {%- set reasoning = message.reasoning_content -%}
    {%- elif '</think>' in content -%}
      {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
      {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if loop.index0 > last.query and (loop.last or reasoning) -%}
      {{- '<think>\n' ~ reasoning.strip('\n') ~ '\n</think>\n\n' ~ content.lstrip('\n') -}}
    {%- else -%}
      {{- content -}}
    {%- endif -%}
  {%- else -%}
    {{- '<|im_start|>' ~ message.role ~ '\n' ~ content -}}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endfor -%}
"""
)

ALWAYS = _HISTORY + r"{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n<think>\n' -}}{%- endif -%}"
"""As Qwen3-VL-Thinking: the prompt opens the reasoning. Reasoning comes apart or in the content, and is left out of all
turns before the last question."""

OPTIONAL = (
    _HISTORY
    + r"""
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}
"""
)
"""As Qwen3: the model opens the reasoning itself, unless `enable_thinking` is false."""

DROPPING = (
    _PARTS
    + r"""
{%- for message in messages -%}
  {%- set content = render(message.content) -%}
  {%- if message.role == 'assistant' and '</think>' in content -%}
    {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
  {%- endif -%}
  {{- '<|im_start|>' ~ message.role ~ '\n' ~ content ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n<think>\n' -}}{%- endif -%}
"""
)
"""Takes reasoning out of the content, and knows none that comes apart."""
