"""regear's own MLA format; importing this registers `regear_mla` with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from regear.models.mla.modeling_regear_mla import RegearMlaConfig, RegearMlaForCausalLM

AutoConfig.register("regear_mla", RegearMlaConfig, exist_ok=True)
AutoModelForCausalLM.register(RegearMlaConfig, RegearMlaForCausalLM, exist_ok=True)

__all__ = ["RegearMlaConfig", "RegearMlaForCausalLM"]
