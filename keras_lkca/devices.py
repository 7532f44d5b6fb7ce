"""Training on several devices: the one place where the backends' engines are driven.

JAX has `keras.distribution`, TensorFlow `tf.distribute` and torch
`torch.distributed`. Each device takes an equal part of every batch.
"""

import atexit
import collections.abc
import concurrent.futures
import contextlib
import datetime
import functools
import importlib
import os
import pickle

import keras
import numpy as np

DISTRIBUTIONS = ("data",)
# What Keras reads to connect several processes under JAX.
_PROCESSES = "KERAS_DISTRIBUTION_NUM_PROCESSES"
_PLACE = "KERAS_DISTRIBUTION_JOB_ADDRESSES", "KERAS_DISTRIBUTION_PROCESS_ID"


class OneDevice:
    """The device that the backend chooses; also what the engines of several share.

    `count` is the number of devices, `processes` that of the processes that train,
    `process` this one's number, `writes` whether it is the one that writes files and
    prints, and `problem` the last error of the batches, where the engine hides it.
    """

    count, processes, process, writes = 1, 1, 0, True
    problem = None

    def check(self, recipe, train):
        """Raise a `ValueError` for what the devices cannot be trained on."""

    def scope(self):
        """Return a context in which the model that `copy` returns is trained."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def quiet(self):
        """Let one process print."""
        with contextlib.ExitStack() as stack:
            if not self.writes:
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
            yield

    def copy(self, model, copy_of):
        """Return what is trained in a model's place, perhaps what a function makes."""
        return model

    def share(self, begin):
        """Return this process's part of the batches that a function begins."""
        return begin()

    def part(self, batch):
        """Return this process's rows of a batch."""
        each = batch[0].shape[0] // self.processes
        rows = slice(self.process * each, (self.process + 1) * each)
        return tuple(part[rows] for part in batch)

    def apart(self):
        """Return a context in which the model is tested, as if by one device."""
        return contextlib.nullcontext()

    def callbacks(self):
        """Return the callbacks that the training needs, to be called first."""
        return []

    def first(self, function):
        """Return what a function returns, or raises, in the process that writes."""
        if self.processes == 1:
            return function()
        result = [None, None]
        if self.writes:
            try:
                result[0] = function()
            except Exception as error:
                result[1] = _portable(error)
        value, error = self.broadcast(result)
        if error is not None:
            raise error
        return value

    def broadcast(self, value):
        """Return what the process that writes has, in each."""
        return value


def several(distribute) -> OneDevice:
    """Return the engine that `distribute` names.

    Args:
        distribute: `None` for one device; `"data"` for all devices of this process
            under JAX and TensorFlow, and for all processes that torchrun started under
            torch, or that `keras.distribution.initialize` connected under JAX.

    Raises:
        ValueError: If it is neither, or the engine was not launched.

    Example:

    >>> from keras_lkca.devices import several
    >>> several(None).count
    1
    """
    if distribute is None:
        told = _told_of_processes()
        if told:
            raise ValueError(
                "`distribute` must be 'data' (--distribute data) in several processes, "
                "of which each would train by itself otherwise. "
                f"Received: distribute=None, and {told}"
            )
        return OneDevice()
    if distribute not in DISTRIBUTIONS:
        raise ValueError(
            f"`distribute` must be None or one of {DISTRIBUTIONS}. "
            f"Received: distribute={distribute!r}"
        )
    engines = {"jax": _Jax, "tensorflow": _TensorFlow, "torch": _Torch}
    if keras.config.backend() not in engines:
        raise ValueError(
            f"`distribute` is for the backends {', '.join(engines)}. "
            f"Received: the backend {keras.config.backend()}"
        )
    return engines[keras.config.backend()]()


def connect():
    """Connect the processes that the environment speaks of, where JAX has not yet.

    Raises:
        ValueError: If they cannot be, as when JAX has computed something already.
    """
    told = _told_of_processes()
    if keras.config.backend() != "jax" or not told:
        return
    if importlib.import_module("jax").distributed.is_initialized():
        return
    try:
        keras.distribution.initialize()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            "`distribute` takes several processes where they are connected before JAX "
            f"computes anything: set {_PROCESSES}, {' and '.join(_PLACE)}, and call "
            "keras.distribution.initialize() first in your script. "
            f"JAX says: {error} Received: {told}"
        ) from error


def _told_of_processes():
    """Return what says that there are several processes, or nothing."""
    if keras.config.backend() == "torch":
        return _said("WORLD_SIZE")
    if keras.config.backend() == "jax":
        jax = importlib.import_module("jax")
        if jax.distributed.is_initialized():
            count = jax.process_count()
            return f"{count} processes that JAX connected" if count > 1 else None
        if _PROCESSES in os.environ:
            return _said(_PROCESSES)
        return ", ".join(f"{x}={os.environ[x]}" for x in _PLACE if x in os.environ)
    return None


def _said(name):
    number = os.environ.get(name)
    return None if number in (None, "", "1") else f"{name}={number}"


def check_divides(count, size, what="`batch_size` of the recipe"):
    """Raise a `ValueError` unless each device gets as many images as the others."""
    if size % count:
        raise ValueError(
            f"{what} must be a multiple of the number of devices, {count}. "
            f"Received: {size}"
        )


def _is_tf_data(batches):
    return hasattr(batches, "element_spec")


def checked(count, batches):
    """Yield batches, each of which the devices can share.

    Example:

    >>> from keras_lkca.devices import checked
    >>> [len(batch[0]) for batch in checked(2, [("four", "labels")])]
    [4]
    """
    for batch in batches:
        check_divides(count, len(batch[0]), "The images of a batch")
        yield batch


def _parts(engine, batches):
    """Return a process's rows of each batch, where the engine takes its own alone."""
    if _is_tf_data(batches):
        if engine.processes == 1:
            return batches
        return batches.map(lambda *batch: engine.part(batch))
    return (engine.part(batch) for batch in checked(engine.count, batches))


class _Copied(OneDevice):
    """Where variables are placed as they are made: what is trained is made anew."""

    def copy(self, model, copy_of):
        copied = copy_of(model)
        for variable, own in zip(model.variables, copied.variables, strict=True):
            own.trainable = variable.trainable
        return copied


class _Jax(_Copied):
    def __init__(self):
        connect()
        jax = importlib.import_module("jax")
        self.processes, self.process = jax.process_count(), jax.process_index()
        self.writes = self.process == 0
        # One of several axes, where the user set it: then the model is shared too.
        self._distribution = keras.distribution.distribution()
        if self._distribution is None:
            self._distribution = keras.distribution.DataParallel()
        elif self.processes > 1:  # of which one alone tests the model in the end
            raise ValueError(
                "`distribute` shares each batch among all devices of several processes "
                "by itself: set no distribution of your own. Received: "
                f"{self._distribution!r} in {self.processes} processes"
            )
        mesh = self._distribution.device_mesh
        axis = self._distribution.batch_dim_name
        self.count = dict(zip(mesh.axis_names, mesh.shape, strict=True))[axis]
        self.evaluates = False

    @contextlib.contextmanager
    def scope(self):
        """Let every device evaluate all images, the last of which none can share.

        Keras is not to share batches out, as `share` does; and one process prints.
        """
        share = self._distribution.get_data_layout
        by_keras = self._distribution.auto_shard_dataset

        def layout_of(shape):
            layout = share(shape)
            if not self.evaluates:
                return layout
            axes = [None] * len(shape)
            return keras.distribution.TensorLayout(axes, layout.device_mesh)

        self._distribution.get_data_layout = layout_of
        self._distribution.auto_shard_dataset = False  # `share` does
        try:
            with self._distribution.scope(), self.quiet():
                yield
        finally:
            self._distribution.auto_shard_dataset = by_keras
            del self._distribution.get_data_layout

    def copy(self, model, copy_of):
        """Make it anew, from one process's weights."""
        if self.processes > 1:
            model.set_weights(self._from_first(model.get_weights()))
        return super().copy(model, copy_of)

    def callbacks(self):
        return [_TellEvaluation(self)]

    @contextlib.contextmanager
    def apart(self):
        """Put a distribution aside that the user set: it cannot share an odd batch."""
        users = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(users)

    def share(self, begin):
        return _parts(self, begin())

    def broadcast(self, value):
        # Only arrays can be sent, and every process must know their size.
        sent = np.frombuffer(pickle.dumps(value), "uint8")
        size = int(self._from_first(np.asarray(sent.size)))
        sent = sent if self.writes else np.zeros(size, "uint8")
        return pickle.loads(np.asarray(self._from_first(sent)).tobytes())

    def _from_first(self, arrays):
        utils = importlib.import_module("jax.experimental.multihost_utils")
        return utils.broadcast_one_to_all(arrays)


@functools.cache
def _mirrored(names):
    """Return the one strategy of a process: TensorFlow's devices join one group."""
    tf = importlib.import_module("tensorflow")
    return tf.distribute.MirroredStrategy(list(names))


class _TensorFlow(_Copied):
    def __init__(self):
        tf = importlib.import_module("tensorflow")
        if tf.distribute.has_strategy():
            self._strategy = tf.distribute.get_strategy()
            several_machines = tf.distribute.MultiWorkerMirroredStrategy
            if isinstance(self._strategy, several_machines):
                raise ValueError(
                    "`distribute` under TensorFlow is for the devices of one machine, "
                    "as Keras 3 trains on no others there: take JAX or torch for "
                    f"several. Received: {self._strategy!r}"
                )
        else:
            devices = tf.config.list_logical_devices
            found = devices("GPU") or devices("CPU")
            self._strategy = _mirrored(tuple(device.name for device in found))
        self.count = self._strategy.num_replicas_in_sync

    def check(self, recipe, train):
        if isinstance(train, collections.abc.Iterator):
            raise ValueError(
                "`train` must be a dataset that can begin anew, with `distribute` "
                "under TensorFlow, which takes its first batch twice. "
                f"Received: an iterator, {train!r}"
            )
        if recipe.gradient_accumulation_steps > 1:
            raise ValueError(
                "`distribute` and the recipe's `gradient_accumulation_steps` do not go "
                "together under TensorFlow, where Keras accumulates in what its "
                "strategies refuse: take one of them, or another backend. Received: "
                f"gradient_accumulation_steps={recipe.gradient_accumulation_steps}"
            )

    def scope(self):
        return self._strategy.scope()

    def share(self, begin):
        """Return a tf.data.Dataset: Keras takes another iterator for a first look."""
        batches = begin()
        if _is_tf_data(batches):
            return batches
        tf = importlib.import_module("tensorflow")
        # In a thread, as TensorFlow takes them, where a teacher answers by itself.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            first = thread.submit(next, batches).result()
        check_divides(self.count, len(first[0]), "The images of a batch")

        def batches_again():
            try:
                yield from checked(self.count, begin())
            except Exception as error:
                self.problem = error  # of which TensorFlow makes another
                raise

        return tf.data.Dataset.from_generator(
            batches_again,
            output_signature=tuple(
                tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in first
            ),
        )


class _Torch(OneDevice):
    def __init__(self):
        self._torch = importlib.import_module("torch")
        self._engine = importlib.import_module("torch.distributed")
        cuda = self._torch.cuda.is_available()
        if not self._engine.is_initialized():
            if "RANK" not in os.environ:
                raise ValueError(
                    "`distribute` under torch needs a process for each device, which "
                    "torchrun starts: torchrun --nproc-per-node 2 SCRIPT, or "
                    "torchrun --nproc-per-node 2 -m keras_lkca train ... "
                    "--distribute data. Received: one process"
                )
            if cuda:
                self._torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            self._engine.init_process_group(
                "nccl" if cuda else "gloo",
                timeout=datetime.timedelta(days=1),  # while one process tests
            )
            atexit.register(self._engine.destroy_process_group)
        self.count = self.processes = self._engine.get_world_size()
        self.process = self._engine.get_rank()
        self.writes = self.process == 0

    @contextlib.contextmanager
    def scope(self):
        """Let one process print, and remove the hooks of `copy` at the end."""
        self._hooks = []
        try:
            with self.quiet():
                yield
        finally:
            for hook in self._hooks:
                hook.remove()

    def copy(self, model, copy_of):
        """Begin from one process's weights, and average every gradient.

        `DistributedDataParallel` averages what its own call leads to; `model.fit` calls
        the model itself. torch calls a tensor's hook where its gradient is whole.
        """
        for variable in model.weights:
            tensor = variable.value
            self._engine.broadcast(tensor.data, 0)
            if tensor.requires_grad:
                hook = tensor.register_post_accumulate_grad_hook(
                    lambda tensor: self._average(tensor.grad)
                )
                self._hooks.append(hook)
        return model

    def share(self, begin):
        return _parts(self, begin())

    def callbacks(self):
        return [_Agree(self)]

    def broadcast(self, value):
        held = [value]
        self._engine.broadcast_object_list(held, 0)
        return held[0]

    def _average(self, tensor):
        self._engine.all_reduce(tensor)
        tensor.div_(self.count)

    def averages(self, numbers):
        """Return what several processes have of some numbers, on average."""
        tensor = self._torch.tensor(numbers, dtype=self._torch.float64)
        if self._torch.cuda.is_available():
            tensor = tensor.cuda()
        self._average(tensor)
        return tensor.tolist()

    def share_statistics(self, model):
        """Take from the first what no gradient changes: BatchNormalization's mean."""
        for variable in model.non_trainable_weights:
            if variable.value.is_floating_point():
                self._engine.broadcast(variable.value.data, 0)


def _portable(error):
    """Return an error as other processes can receive it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _TellEvaluation(keras.callbacks.Callback):
    """Tell an engine when the model is evaluated, and all processes one's figures."""

    def __init__(self, engine):
        super().__init__()
        self.engine = engine

    def on_test_begin(self, logs=None):
        self.engine.evaluates = True

    def on_test_end(self, logs=None):
        self.engine.evaluates = False

    def on_epoch_end(self, epoch, logs=None):
        if self.engine.processes > 1:  # each evaluated by itself
            logs.update(self.engine.broadcast({k: float(v) for k, v in logs.items()}))


class _Agree(keras.callbacks.Callback):
    """Let the processes evaluate one model, and know the same figures."""

    def __init__(self, engine):
        super().__init__()
        self.engine = engine

    def on_test_begin(self, logs=None):
        self.engine.share_statistics(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self.engine.share_statistics(self.model)
        logs.update(zip(logs, self.engine.averages(list(logs.values())), strict=True))
