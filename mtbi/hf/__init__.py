"""Trained speech LLMs as models of Hugging Face transformers. `import mtbi.hf` registers them with its Auto classes:

    import mtbi.hf
    from transformers import AutoModelForCausalLM, AutoProcessor, pipeline

    model, processor = AutoModelForCausalLM.from_pretrained(FOLDER), AutoProcessor.from_pretrained(FOLDER)
    ask = pipeline("audio-text-to-text", model=FOLDER)

`mtbi export` writes such folders.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCausalLM, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from mtbi.hf.configuration import MtbiConfig
from mtbi.hf.modeling import MtbiForConditionalGeneration
from mtbi.hf.pipeline import TASK, AudioTextToTextPipeline
from mtbi.hf.processing import MtbiFeatureExtractor, MtbiProcessor

__all__ = [
    "AudioTextToTextPipeline",
    "MtbiConfig",
    "MtbiFeatureExtractor",
    "MtbiForConditionalGeneration",
    "MtbiProcessor",
]

AutoConfig.register(MtbiConfig.model_type, MtbiConfig, exist_ok=True)
AutoModel.register(MtbiConfig, MtbiForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(MtbiConfig, MtbiForConditionalGeneration, exist_ok=True)
AutoFeatureExtractor.register(MtbiConfig, feature_extractor_class=MtbiFeatureExtractor, exist_ok=True)
AutoProcessor.register(MtbiConfig, MtbiProcessor, exist_ok=True)
if TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(TASK, AudioTextToTextPipeline, pt_model=(AutoModelForCausalLM,), type="multimodal")
