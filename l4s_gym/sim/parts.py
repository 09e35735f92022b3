"""Linking once: a function that only compiled code calls is optimised and turned to machine code with its callers.

Numba links everything that a function calls into it, optimises that, and makes machine code of it, at each level anew:
with some 450 functions this was half of the compile. Here a part stays as it was lowered, and an entry point links each
part below it once. It rests on what is private in Numba; `tests/sim/test_parts.py` says so where a release changes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numba.core import typed_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager, register_pass


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """A function as it was lowered, and what it calls."""

    def finalize(self) -> None:
        """Nothing more is added."""
        self._raise_if_finalized()
        for each in self._linking_libraries:
            self._reload_init.update(each._reload_init)
        self._finalize_dynamic_globals()
        self._finalized = True

    def _optimize_functions(self, ll_module: Any) -> None:
        """Later, with the callers."""
        ll_module.data_layout = self._codegen._data_layout

    def alone(self) -> Any:
        """The module of this function, to be linked."""
        return super()._get_module_for_linking()

    def _get_module_for_linking(self) -> Any:
        """With all that it calls, for a library that is none of ours."""
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
    """Each library once that has to be linked with one."""
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
        refuses = nothing.pop  # one of its own, that fails: Python has nothing to call
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
    """Numba's, with another lowering."""
    passes = PassManager(lowering._name)
    for each, title in DefaultPassBuilder.define_nopython_pipeline(state).passes:
        passes.add_pass(lowering if each is typed_passes.NativeLowering else each, title)
    passes.finalize()
    return [passes]


class PartCompiler(CompilerBase):  # type: ignore[misc]
    """For `numba.njit(pipeline_class=...)`: a function that only compiled code calls."""

    def define_pipelines(self) -> list[PassManager]:
        """The steps of the compile."""
        return _pipeline(self.state, _LowerPart)


class WholeCompiler(CompilerBase):  # type: ignore[misc]
    """The same for a function that calls parts and that Python calls."""

    def define_pipelines(self) -> list[PassManager]:
        """The steps of the compile."""
        return _pipeline(self.state, _LowerWhole)
