"""What weights, gradients and optimizer states take of a worker's memory at each ZeRO stage, by formula."""

from dataclasses import dataclass

FLOAT = 4
"""Bytes of an fp32 number: weights, gradients and optimizer states are fp32 throughout."""

LARGEST_BUCKET = 50_000_000
"""Numbers in the engine's largest bucket; a test holds it against `distmeta.engine.deepspeed_engine`."""

ALLREDUCE_BUFFER = 500_000_000
"""Numbers in DeepSpeed's largest buffer at stage 0; a test holds it against its MEMORY_OPT_ALLREDUCE_SIZE."""


@dataclass(frozen=True, slots=True)
class ModelStates:
    """Bytes that a worker's engine holds for the model, P parameters of which T are trained, on W workers.

    Between two steps, in numbers of 4 bytes (Rajbhandari et al. 2020, "ZeRO", section 3, with fp32 in the place of
    half precision, as distmeta uses DeepSpeed 0.19):

        stage 0     P weights + 2 T AdamW moments
        stage 1, 2  P weights + (T weights that are updated + 2 T moments) / W
        stage 3     (P weights + T weights that are updated + 2 T moments + T gradients) / W + a bucket

    While a step is taken, also T gradients that the learner hands over, and

        stage 0     T gradients, averaged, and DeepSpeed's flat buffer of them: T numbers, but no more than
                    `ALLREDUCE_BUFFER`, with one worker too
        stage 1, 2  while AdamW works on the flat shard, T / W averaged gradients, their flat copy, and two temporaries
                    (the square root of a moment, and that divided); or before that two buckets, for gradients on their
                    way and flattened, and T / W averaged ones, where the buckets are still there (they are not in
                    every step): whichever is more
        stage 3     on one worker 3 T: the flat copy and the two temporaries. With others P weights that the learner had
                    gathered and the loop still holds; and T weights that the engine gathers to take the gradients and
                    two buckets (flattened gradients, and their parts to send), or AdamW's 3 T / W, whichever is more

    While the learner works, T gradients that it adds up, P gathered weights at stage 3 with others, and one set of A
    fast weights (of small networks several tasks' go side by side, within `MOST_BYTES` of the learner, which are left
    out). Activations, and what a second-order inner loop keeps of its steps, come on top.

    The bucket is what the engine sets aside for communication: T numbers, but no more than `LARGEST_BUCKET`. AdamW's
    temporaries are those of a CPU. Both were followed by a dispatch mode through DeepSpeed 0.19 and torch 2.13.

    With `offload` (stages 1 to 3) `host` is held in the host's memory, and on the GPU there is less: between steps P
    weights and a buffer of the largest parameter (which is left out), at stage 3 P / W weights and the bucket; and
    AdamW works on the host, so that there are two buckets in its place.
    """

    parameters: int
    trained: int
    workers: int
    stage: int
    adapted: int = 0
    offload: bool = False

    @property
    def bucket(self) -> int:
        """Bytes of the communication bucket."""
        return FLOAT * min(self.trained, LARGEST_BUCKET)

    @property
    def weights(self) -> float:
        """Bytes of the weights that the network is computed from."""
        return FLOAT * self.parameters / (self.workers if self.stage == 3 else 1)

    @property
    def optimizer(self) -> float:
        """Bytes of AdamW's moments and, at stages 1 to 3, of its own copy of the weights, wherever they are."""
        return FLOAT * (2 * self.trained if self.stage == 0 else 3 * self.trained / self.workers)

    @property
    def resident(self) -> float:
        """Bytes held between two steps."""
        held = self.weights + (0 if self.offload else self.optimizer)
        if self.stage < 3:
            return held
        return held + self.bucket + (0 if self.offload else FLOAT * self.trained / self.workers)

    @property
    def host(self) -> float:
        """Bytes held in the host's memory in place of the GPU's: what AdamW holds, its gradients, and as many numbers
        again (at stage 3 where gradients add up, else a buffer of DeepSpeed's)."""
        return self.optimizer + 2 * FLOAT * self.trained / self.workers if self.offload else 0.0

    @property
    def checkpoint(self) -> float:
        """Bytes of the host's memory that a copy of the worker's part takes from the first checkpoint on: its share of
        weights and moments."""
        return FLOAT * (self.parameters + 2 * self.trained) / self.workers

    @property
    def peak(self) -> float:
        """Bytes held at most: while a step is taken, or the learner works."""
        gathered = FLOAT * self.parameters if self.stage == 3 and self.workers > 1 else 0
        learning = self.resident + gathered + FLOAT * (self.trained + self.adapted)
        return max(learning, self._stepping + gathered)

    @property
    def _stepping(self) -> float:
        trained = FLOAT * self.trained
        share = trained / self.workers
        held = self.resident + trained
        communication = 2 * self.bucket + (trained if self.stage == 3 and self.workers > 1 else 0)
        if self.stage == 0:
            return held + trained + FLOAT * min(self.trained, ALLREDUCE_BUFFER)
        if self.offload:
            return held + communication
        if self.stage < 3:
            return held + max(4 * share, communication + share)
        return held + max(3 * share, communication if self.workers > 1 else 0)


@dataclass(frozen=True, slots=True)
class PartitionedStates:
    """The same where weights stay partitioned at stage 3, M numbers in the largest module, A fast weights.

    Between two steps, in numbers of 4 bytes:

        (P weights + T weights that are updated + 2 T moments + T gradients) / W + a bucket

    the bucket of M numbers, but no more than `LARGEST_BUCKET`. While a step is taken also AdamW's 3 T / W (a flat copy
    and two temporaries), or before that the largest module, its gradient, and that on its way, 3 M, and of the fast
    weights as many sets as `fast_copies`: a set, its gradient and the set after it; for differences of gradients the
    set of each inner step and 6 more. Whichever is more; activations come on top. At the start no more
    than two copies of one tensor are held beside a worker's own part; the first worker makes the network in
    files, which take no memory where there is none. (Of small modules more than one is
    held: a test has 3 M and the fast weights within 30% of what is held then.)
    """

    parameters: int
    trained: int
    workers: int
    adapted: int
    largest: int
    fast_copies: int
    offload: bool = False
    stage: int = 3

    @property
    def weights(self) -> float:
        """Bytes of the weights that the network is computed from."""
        return FLOAT * self.parameters / self.workers

    @property
    def optimizer(self) -> float:
        """Bytes of AdamW's moments and its own copy of the weights, wherever they are."""
        return FLOAT * 3 * self.trained / self.workers

    @property
    def resident(self) -> float:
        """Bytes held between two steps."""
        share = FLOAT * self.trained / self.workers
        return self.weights + FLOAT * min(self.largest, LARGEST_BUCKET) + (0 if self.offload else 4 * share)

    @property
    def host(self) -> float:
        """Bytes held in the host's memory in place of the GPU's."""
        return self.optimizer + 2 * FLOAT * self.trained / self.workers if self.offload else 0.0

    @property
    def checkpoint(self) -> float:
        """Bytes of the host's memory that a copy of the worker's part takes from the first checkpoint on: its share of
        weights and moments."""
        return FLOAT * (self.parameters + 2 * self.trained) / self.workers

    @property
    def peak(self) -> float:
        """Bytes held at most."""
        update = 0 if self.offload else self.optimizer
        return self.resident + max(update, FLOAT * (3 * self.largest + self.fast_copies * self.adapted))


States = ModelStates | PartitionedStates
