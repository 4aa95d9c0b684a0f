"""The fields that are part of fingerprints even where they have their default.

The names of users' parts depend on them: they are the fields that the classes had when fingerprints contained every
field. A field that was added later is in a fingerprint only where it differs from its default, so adding one changes no
fingerprint. That holds for all fields of later classes too: nothing is ever added to this list.
"""

from collections.abc import Mapping
from typing import Final

FIRST_FIELDS: Final[Mapping[str, str]] = {
    "cluster._auto.Grid": "min max per_doubling criterion",
    "cluster._resample.Resample": "rounds points",
    "cluster.assign.Assign": "encoder",
    "cluster.centroids.Auto": "auto",
    "cluster.centroids.Centroids": "resample",
    "cluster.centroids.Training": "k encoder niter train engine",
    "cluster.cluster.Cluster": "levels resample",
    "cluster.concepts.Concepts": "neighbours terms labels templates encoder",
    "cluster.hierarchy.Hierarchy": "levels niter resample engine",
    "deduplicate._base.Best": "best",
    "deduplicate._evaluation.EvaluationSet": "name path image sha256 pixels_sha256 phash vector",
    "deduplicate._perceptual.Perceptual": "radius",
    "deduplicate._semantic.Semantic": "encoder epsilon rule order clusters borders reach",
    "deduplicate.decontaminate.Decontaminate": "sets exact pixels radius epsilon encoder",
    "deduplicate.deduplicate.Deduplicate": "exact pixels perceptual semantic keep",
    "download._base.Settings": (
        "image_size resize_mode resize_only_if_bigger reencode encode_format encode_quality timeout_s retries "
        "backoff_s max_redirects max_bytes max_pixels max_side_px decode_cpu_s min_size_px max_aspect_ratio "
        "statistics concurrency per_host user_agent_token disallowed_header_directives respect_robots "
        "respect_tdm crawl_wait_s host_wait_s allow_hosts verify_hash"
    ),
    "download._base.VerifyHash": "column type",
    "download.download.Download": "engine engine_limit_s",
    "embed.embed.Embed": "encoders batch_size decode_threads",
    "encoders.encoder.Encoder": "name model pretrained trained text dim dtype",
    "files.weights.Weights": "weights sha256",
    "filter._lists.ListFile": "file entries",
    "filter._lists.Listed": "name column match keep",
    "filter._lists.Words": "column ignore_case",
    "filter.filter.Filter": "where rules words lists timeout_s",
    "filter.near_targets.NearTargets": "targets column encoder least",
    "prune._base.ClusterSelector": "keep keep_rows",
    "prune._combine.Combination": "of",
    "prune.density.Density": "temperature neighbours min_per_cluster projection which",
    "prune.hierarchical.Hierarchical": "which",
    "prune.prototypes.Prototypes": "which balance",
    "prune.score.Score": "column lowest keep keep_rows threshold of",
    "prune.then.Then": "of_total",
    "report.report.Report": "title description samples concepts pairs",
    "score._base.Scorer": "name",
    "score._base.VectorScorer": "encoder",
    "score.aesthetic_v1.AestheticV1": "variant",
    "score.language.Language": "column",
    "score.nsfw.Nsfw": "variant",
    "score.prompts.Ensemble": "ensemble logit_scale sample_rows reference",
    "score.prompts.PromptSet": "name encoder labels templates",
    "score.prompts.Prompts": "sets",
    "score.score.Score": "scorers",
    "score.score_images.Forwarding": "batch_size decode_threads",
    "score.score_images.ScoreImages": "scorers",
    "score.score_vectors.ScoreVectors": "scorers",
    "score.violence.Violence": "weights sha256 variant texts logit_scale",
    "score.zero_shot.ZeroShot": "labels templates each",
    "sources._base.Source": "path rows_per_part follow_links",
    "sources._tabular.Tabular": "url caption label caption_from types",
    "sources.csv.Csv": "delimiter quoting names",
    "sources.folder.Folder": "label",
    "sources.webdataset.Webdataset": "caption_from",
    "stage.Resources": "cpus gpus memory_gb batch_rows actors",
    "stage.Stage": "name resources",
    "train.train_clip.TrainClip": (
        "model_name config steps batch_size learning_rate warmup weight_decay vocabulary checkpoint_every_s licence"
    ),
}
"""Class, by its module in `tasks` and its name -> the fields that it declares, separated by spaces.

Where a class is moved or renamed, its key is too: otherwise all parts of its stages would be made again.
"""
