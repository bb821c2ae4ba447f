"""Every key there is, with its unit and where its value comes from.

A config of your own begins with `from configs.default import get_config as default` and
contains only its differences.
"""

from functools import partial

from ml_collections import ConfigDict

from asyn2f import strategies

# Values are checked when all are there, by names and ranges; see asyn2f.config.schema.
Section = partial(ConfigDict, type_safe=False)


def get_config() -> ConfigDict:
    """The defaults: Asyn2F on handwritten digits, five equal workers."""
    config = Section()
    config.seed = 0  # of everything drawn: split, initial model, batches
    config.workers = 5  # shards the data is cut into; one worker each
    config.min_workers = 0  # the run starts with that many; 0 = all
    config.worker_speeds = (0.0,)  # steps/s at most, repeated over them; 0 = no limit

    config.task = task = Section()
    # digits | mnist | fashion_mnist | cifar10 | cifar100 | ember, or the folder of any
    # image classification set that tensorflow-datasets has prepared
    task.dataset = "digits"
    task.data_dir = ""  # where it is; "" = where tensorflow-datasets puts it
    task.model = "mlp"  # mlp | cnn | small_cnn | resnet18 | resnet20 | resnet34 | ember
    task.hidden = (32,)  # mlp, small_cnn: widths of the dense layers between
    task.channels = (16, 32)  # cnn, small_cnn: of its convolutions
    task.batch_norm = False  # cnn
    task.conv_impl = "auto"  # convolutions: auto | lax | im2col (same parameters)
    task.dtype = "float32"  # the network computes in: float32 | bfloat16
    task.normalise = False  # each channel to mean 0, deviation 1 of the training set
    task.augment = "none"  # none | crop_flip: images shifted and mirrored in training
    task.class_weights = "none"  # of the loss: none | balanced
    # iid | sizes | normal | overlapping | class_shares | dirichlet | shards | file
    task.partition = "iid"
    task.sizes = (0,)  # sizes, overlapping, class_shares: examples of each worker
    task.size_spread = 0.25  # normal: deviation of a size over the mean size
    task.class_shares = (0.0,)  # class_shares: of each class, worker after worker
    task.alpha = 0.5  # dirichlet: label skew, > 0, small = strong
    task.shards_per_worker = 2  # shards: pieces of the label-sorted data
    task.indices = ""  # file: JSON, a list of rows for each worker
    task.quality = (1.0,)  # Q_k in (0, 1], repeated over the workers

    config.training = training = Section()
    training.batch_size = 32  # examples per step (the paper: 128)
    training.learning_rate = 0.1  # lr_0 (the paper's)
    training.momentum = 0.9  # the paper's
    training.weight_decay = 5e-4  # L2, the paper's
    training.schedule = "fixed"  # fixed | cosine (own steps) | synchronous (versions)
    training.learning_rate_min = 0.005  # the paper's
    training.schedule_length = 500  # steps or versions until then
    training.schedule_epochs = 0  # cosine: epochs of s_k / batch_size steps; 0 = above
    training.momentum_at_merge = "keep"  # keep | reset

    config.strategy = strategy = Section()
    strategy.name = "asyn2f"  # or any other of asyn2f.strategies.BUILDERS
    # strategy.asyn2f.beta, strategy.fedbuff.server_rate, ...: what each builder takes,
    # documented there; those of other strategies than `name` are not looked at.
    strategy.update(strategies.defaults())

    config.timing = timing = Section()
    timing.min_updates = 0  # m, or the size of a buffer; 0 = the usual, at most workers
    timing.epochs_per_push = 5  # n: local epochs (the paper: 5)
    timing.push_min_accuracy = 0.0  # hold pushes until this accuracy; 0 = off
    timing.push_after_epochs = 0  # ... or until that many epochs; 0 = never
    timing.deadline_s = 0.0  # aggregate what waits for so long; 0 = never

    config.stop = stop = Section()
    stop.max_versions = 150  # 0 = no limit
    stop.max_time_s = 0.0  # seconds from the start of training; 0 = no limit
    stop.target_accuracy = 0.0  # on the test set; 0 = none

    # Departures from the formulas, against updates that lie; see asyn2f.kernels.guards.
    config.guards = guards = Section()
    guards.mode = "off"  # off | observe (changes nothing, writes down) | enforce
    guards.max_norm_ratio = 10.0  # distance over the median of those accepted; >= 1
    guards.min_loss_ratio = 2.0  # a loss counts as median / this at least; >= 1
    guards.max_share = 0.5  # largest coefficient; asyn2f, others have none to cap

    # What travels instead of a model in float32; the numbers depend on it.
    config.wire = wire = Section()
    wire.updates = "float32"  # float32 | bfloat16 | int8 | topk
    wire.delta = False  # bfloat16, int8: code the change since the base version
    wire.topk_share = 0.1  # topk: of each leaf's entries, in (0, 0.5]
    wire.versions = "float32"  # float32 | bfloat16 | int8

    config.runtime = runtime = Section()
    runtime.address = "tcp://127.0.0.1:0"  # and the two ports above; 0 = any free
    runtime.keys_dir = ""  # folder that launch.keys made; "" = none, this machine only
    runtime.publish = "after_save"  # after_save | before_save
    runtime.keep_last = 10  # versions in the store, beside best and young ones
    runtime.keep_younger_than_s = 120.0
    runtime.write_ahead = True  # a plain file at once, Orbax behind; small versions
    runtime.heartbeat_interval_s = 1.0  # seconds between signs of life
    runtime.heartbeat_timeout_s = 3.0  # silence after which a peer counts as gone
    runtime.server_timeout_s = 60.0  # silence of the server after which a peer ends
    runtime.join_timeout_s = 60.0  # how long a peer tries to register
    runtime.max_updates_per_s = 0.0  # of one worker; 0 = no limit
    runtime.zstd = False  # pack what travels, without loss
    runtime.shared_memory = True  # for large models, among processes of one machine
    runtime.pin_cpus = True  # one core per worker, in launch.local on a CPU
    # There, workers compute when nobody else wants to. False: a tenth of a core that
    # other programs keep busy is theirs, and the server waits longer for its disk.
    runtime.idle_priority = True

    config.sim = sim = Section()  # launch.simulate alone
    sim.profiles = "drawn"  # from what follows, or a file: .csv or .jsonl
    sim.step_s = (0.0,)  # a local step, repeated over them; 0 = 1 / worker_speeds
    sim.step_spread = 1.0  # ... times a factor drawn log-uniformly from [1, this]
    sim.jitter = 0.0  # sigma of the log-normal factor of each stretch of steps
    sim.upload_s = 0.0  # latency
    sim.download_s = 0.0
    sim.upload_mbps = 0.0  # megabit per second; 0 = no limit
    sim.download_mbps = 0.0
    sim.link_spread = 1.0  # latency and bandwidth worse by up to this factor
    sim.join_window_s = 0.0  # workers join at times drawn from [0, this]
    sim.mean_session_s = 0.0  # and leave for good after this long on average; 0 = never
    sim.outage_every_s = 0.0  # mean time between a worker's outages; 0 = none
    sim.outage_s = 0.0  # their mean length
    sim.aggregate_s = 0.0  # what a version costs the server
    sim.evaluate_every = 0  # versions; 0 = about 200 evaluations in all
    sim.executor = "auto"  # auto (measured) | serial | vectorised | sharded
    sim.lanes = 0  # of each device; 0 = what is usual there
    return config
