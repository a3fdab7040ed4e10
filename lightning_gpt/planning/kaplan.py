"""Kaplan et al. (2020), "Scaling Laws for Neural Language Models", arXiv 2001.08361.

N counts parameters without embeddings, L is in nats a token of WebText2 in GPT-2's vocabulary, so their losses do not
compare with those of the other laws, which were measured on MassiveText. Compute is theirs in PF-days, FLOPs here.

Their exponent of N_opt, 0.73, lies far from the 0.5 of Hoffmann et al. (2022), for one because every run had the same
learning-rate schedule, too long for the short ones (Hoffmann, section 2), for another because of the embeddings that N
leaves out in small networks (Pearce & Song, 2024). It is what GPT-3 was planned by.
"""

from lightning_gpt.planning.laws import Allocation

PF_DAY = 8.64e19
"""10^15 FLOP/s for a day."""

N_C, ALPHA_N = 8.8e13, 0.076
D_C, ALPHA_D = 5.4e13, 0.095
C_C, ALPHA_C = 3.1e8, 0.050  # of C_min; table 5
B_STAR, ALPHA_B = 2.1e8, 0.21
JOINT_N_C, JOINT_ALPHA_N, JOINT_D_C, JOINT_ALPHA_D = 6.4e13, 0.076, 1.8e13, 0.103  # table 2


def loss_of_parameters(parameters: float) -> float:
    """L(N) without limits of data or training: (N_c / N)^alpha_N (equation 1.1)."""
    return (N_C / parameters) ** ALPHA_N


def loss_of_tokens(tokens: float) -> float:
    """L(D) of a large network stopped early: (D_c / D)^alpha_D (equation 1.2)."""
    return (D_C / tokens) ** ALPHA_D


def loss_of_compute(flops: float) -> float:
    """L(C_min) at the best size and a small batch: (C_c / C_min)^alpha_C (equation 1.3)."""
    return (C_C * PF_DAY / flops) ** ALPHA_C


def loss(parameters: float, tokens: float) -> float:
    """L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D (equation 1.5, constants of table 2)."""
    size = (JOINT_N_C / parameters) ** (JOINT_ALPHA_N / JOINT_ALPHA_D)
    return (size + JOINT_D_C / tokens) ** JOINT_ALPHA_D


def critical_batch(loss: float) -> float:
    """Tokens of a batch at which a loss costs twice the least compute and twice the least steps: B* / L^(1 / alpha_B)
    (equation 1.4, table 5)."""
    return B_STAR / loss ** (1 / ALPHA_B)


def least_compute(flops: float) -> float:
    """C_min of a run at the critical batch size: half of its FLOPs (equation 5.5, B = B_crit). Hoffmann et al. (2022,
    appendix D.4) read it so: 4.68 G parameters for 1e21 FLOPs."""
    return flops / 2


def optimal_parameters(flops: float) -> float:
    """N for the FLOPs of a run at the critical batch size: 1.3e9 C_min^0.73 (table 6)."""
    return 1.3e9 * (least_compute(flops) / PF_DAY) ** 0.73


def optimal_batch(flops: float) -> float:
    """Tokens of a batch for it: 2.0e6 C_min^0.24 (table 6)."""
    return 2.0e6 * (least_compute(flops) / PF_DAY) ** 0.24


def least_steps(flops: float) -> float:
    """Steps that a run of large batches needs for it: 5.4e3 C_min^0.03 (table 6); at the critical batch size twice."""
    return 5.4e3 * (least_compute(flops) / PF_DAY) ** 0.03


KAPLAN = Allocation(
    "kaplan",
    1.3e9,
    2 * PF_DAY / (6 * 1.3e9),
    0.27 / 0.73,
    counts="body",
    source="Kaplan et al., 2020, arXiv 2001.08361, table 6, at the critical batch size (C_min = C / 2)",
)
