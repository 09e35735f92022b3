"""Linking once: a function for compiled code only is optimised and turned to machine code with its callers.

Numba links all functions that a function calls into it, optimises them, and makes machine code, again at each level:
with some 450 functions this was half of the compile. Here a part stays as it was lowered, and an entry point links each
part below it once. This uses private parts of Numba; `tests/sim/test_parts.py` fails if a release changes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numba.core import typed_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager, register_pass


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """A function as it was lowered, and the functions that it calls."""

    def finalize(self) -> None:
        """Do nothing: nothing more is added."""
        self._raise_if_finalized()
        for each in self._linking_libraries:
            self._reload_init.update(each._reload_init)
        self._finalize_dynamic_globals()
        self._finalized = True

    def _optimize_functions(self, ll_module: Any) -> None:
        """Do nothing: the callers optimise it."""
        ll_module.data_layout = self._codegen._data_layout

    def alone(self) -> Any:
        """Return the module of this function, for linking."""
        return super()._get_module_for_linking()

    def _get_module_for_linking(self) -> Any:
        """Return the module linked with all that it calls, for a library of Numba's own."""
        module = self.alone().clone()
        for each in _below(self):
            module.link_in(_module(each), preserve=True)
        return module


class _Whole(JITCodeLibrary):  # type: ignore[misc]
    """An entry point, with each part below it."""

    def finalize(self) -> None:
        """Link, optimise, and make machine code."""
        for each in _below(self):
            self._reload_init.update(each._reload_init)
            self._final_module.link_in(_module(each), preserve=True)
        self._linking_libraries.clear()
        super().finalize()


def _module(library: Any) -> Any:
    return library.alone() if isinstance(library, _Part) else library._get_module_for_linking()


def _below(library: Any) -> Iterator[Any]:
    """Yield each library once that must be linked with this one."""
    seen = {library}
    waiting = [library]
    while waiting:
        for each in waiting.pop()._linking_libraries:
            if each not in seen:
                seen.add(each)
                yield each
                if isinstance(each, _Part):
                    waiting.append(each)


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerPart(typed_passes.NativeLowering):  # type: ignore[misc]
    _name = "lower_part"

    def run_pass(self, state: Any) -> bool:
        context = state.targetctx
        state.library = _Part(context.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        nothing: list[Any] = []
        refuses = nothing.pop  # a function of its own that fails: Python has nothing to call
        context.insert_user_function(refuses, state.cr.fndesc, [state.library])
        state.cr = state.cr._replace(cfunc=refuses)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerWhole(typed_passes.NativeLowering):  # type: ignore[misc]
    _name = "lower_whole"

    def run_pass(self, state: Any) -> bool:
        state.library = _Whole(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return bool(super().run_pass(state))


def _pipeline(state: Any, lowering: Any) -> list[PassManager]:
    """Return Numba's passes with another lowering."""
    passes = PassManager(lowering._name)
    for each, title in DefaultPassBuilder.define_nopython_pipeline(state).passes:
        passes.add_pass(lowering if each is typed_passes.NativeLowering else each, title)
    passes.finalize()
    return [passes]


class PartCompiler(CompilerBase):  # type: ignore[misc]
    """Compiler for `numba.njit(pipeline_class=...)`, for a function that only compiled code calls."""

    def define_pipelines(self) -> list[PassManager]:
        """Return the steps of the compile."""
        return _pipeline(self.state, _LowerPart)


class WholeCompiler(CompilerBase):  # type: ignore[misc]
    """Compiler for a function that calls parts and that Python calls."""

    def define_pipelines(self) -> list[PassManager]:
        """Return the steps of the compile."""
        return _pipeline(self.state, _LowerWhole)
