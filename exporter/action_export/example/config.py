# The example recognizer: SlowOnly with one block a stage and 14 base channels, on 8 frames of
# 64 x 64, two clips of each video and three crops of each clip. scripts/train_example.py trains it.
default_scope = "mmaction"

model = dict(
    type="Recognizer3D",
    backbone=dict(
        type="ResNet3dSlowOnly",
        depth=18,
        base_channels=14,
        stage_blocks=(1, 1, 1, 1),
        pretrained=None,
        lateral=False,
        conv1_kernel=(3, 7, 7),
        conv1_stride_t=1,
        pool1_stride_t=1,
        inflate=(1, 1, 1, 1),
        norm_eval=False,
        zero_init_residual=False,
    ),
    cls_head=dict(
        type="I3DHead",
        in_channels=112,
        num_classes=20,
        spatial_type="avg",
        dropout_ratio=0.0,
        average_clips="prob",
    ),
    data_preprocessor=dict(
        type="ActionDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        format_shape="NCTHW",
    ),
)

test_pipeline = [
    dict(type="DecordInit"),
    dict(type="SampleFrames", clip_len=8, frame_interval=9, num_clips=2, test_mode=True),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 64)),
    dict(type="ThreeCrop", crop_size=64),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs"),
]

# `python scripts/example_clips.py clips` writes such a folder.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="VideoDataset",
        ann_file="clips/annotations.txt",
        data_prefix=dict(video="clips"),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = dict(type="AccMetric")
test_cfg = dict(type="TestLoop")
