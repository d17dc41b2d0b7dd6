"""Recurrent layers for PyTorch, as fast as the hardware allows, over pluggable backends.

`fastrnn.LSTM`, `fastrnn.GRU` and `fastrnn.RNN` take the place of torch.nn's layers of these names;
`fastrnn.convert(model)` puts them into a model that exists.
"""

from fastrnn import diagnostics, init
from fastrnn._version import __version__
from fastrnn.cell_modules import GRU, CellRNN
from fastrnn.cells import GRUCell, LSTMCell, RNNCell
from fastrnn.convert import ConversionReport, LayerReport, conversion_report, convert, revert
from fastrnn.dispatch import BackendError, use_backend
from fastrnn.explained import explain
from fastrnn.functional import cell_rnn, gru, lstm, rnn
from fastrnn.hookspecs import hookimpl
from fastrnn.initial_state import InitialState
from fastrnn.jordan import JordanRNN
from fastrnn.modules import LSTM, RNN
from fastrnn.plugins import PluginWarning, register, unregister
from fastrnn.stepper import Stepper
from fastrnn.streaming import Window, detach, windows
from fastrnn.weight_drop import weight_drop

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BackendError",
    "CellRNN",
    "ConversionReport",
    "GRUCell",
    "InitialState",
    "JordanRNN",
    "LSTMCell",
    "LayerReport",
    "PluginWarning",
    "RNNCell",
    "Stepper",
    "Window",
    "__version__",
    "cell_rnn",
    "conversion_report",
    "convert",
    "detach",
    "diagnostics",
    "explain",
    "gru",
    "hookimpl",
    "init",
    "lstm",
    "register",
    "revert",
    "rnn",
    "unregister",
    "use_backend",
    "weight_drop",
    "windows",
]
