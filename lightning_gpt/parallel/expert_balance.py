"""The balance loss of a batch that is spread over devices: that of the whole batch, not of each device's part.

E sum_e f_e P_e is no mean over tokens: an expert that each device's few tokens neglect may be wanted by others'. The
shares of choices f_e are therefore those of all ranks (Qiu et al., 2025, arXiv:2501.11873, who find that experts
specialise more by it); they have no gradient, so that one sum of E numbers a layer suffices. The mean over the ranks
of E sum_e f_e P_e, each with its own mean scores P_e, is then the loss of one device with the whole batch.
"""

from functools import partial

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_reduce, wait_tensor

from lightning_gpt.nn import GPT
from lightning_gpt.nn.moe import mixtures
from lightning_gpt.nn.router import Router


def balance_over(net: GPT, group: ProcessGroup) -> None:
    """Lets every router count the choices of all ranks that have data of their own, in place.

    Args:
        net: with or without mixtures.
        group: those ranks; in training all of them make the same passes.
    """
    if group.size() > 1:
        for _, mixture in mixtures(net):
            mixture.router.choices = partial(_choices_of_all, mixture.router, group)


def _choices_of_all(router: Router, group: ProcessGroup, expert_M: Tensor) -> Tensor:
    """In place of Router.choices. Evaluation has no loss to balance, and ranks may make passes of their own."""
    choices_E = Router.choices(router, expert_M)
    return wait_tensor(all_reduce(choices_E, "sum", group)) if router.training else choices_E
