import torch

from step3.nano.muon import Muon, orthogonalise


def test_orthogonalise_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((48, 16), (16, 48), (3, 24, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_orthogonalise_keeps_the_singular_vectors():
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(32, 32))
    matrix = left @ torch.diag(torch.linspace(1, 2, 32)) @ right
    aligned = (left.mT @ orthogonalise(matrix) @ right.mT).diagonal()
    assert (aligned > 0.6).all()


def test_a_stack_of_matrices_is_trained_one_by_one():
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(2, 8, 8))
    alone = torch.nn.Parameter(stack[1].detach().clone())
    gradient = torch.randn(2, 8, 8)
    stack.grad, alone.grad = gradient.clone(), gradient[1].clone()
    Muon([stack], lr=0.1).step()
    Muon([alone], lr=0.1).step()
    torch.testing.assert_close(stack[1], alone)


def test_the_update_has_the_size_that_the_rate_says():
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(64, 32))
    matrix.grad = torch.randn(64, 32)
    Muon([matrix], lr=0.01).step()
    root_mean_square = matrix.detach().square().mean().sqrt().item()
    assert 0.2 * 0.01 * 0.5 < root_mean_square < 0.2 * 0.01 * 1.3


def test_a_convolution_kernel_is_a_matrix_of_its_outputs():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.zeros(6, 3, 2, 2))
    flat = torch.nn.Parameter(torch.zeros(6, 12))
    kernel.grad = torch.randn(6, 3, 2, 2)
    flat.grad = kernel.grad.flatten(1).clone()
    Muon([kernel], lr=0.1).step()
    Muon([flat], lr=0.1).step()
    torch.testing.assert_close(kernel.flatten(1), flat)


def test_it_solves_a_least_squares_problem():
    torch.manual_seed(0)
    inputs, goal = torch.randn(64, 16), torch.randn(16, 16)
    weight = torch.nn.Parameter(torch.zeros(16, 16))
    optimiser = Muon([weight], lr=0.2)
    losses = []
    for step in range(200):
        for group in optimiser.param_groups:
            group["lr"] = 0.2 * (1 - step / 200)
        optimiser.zero_grad()
        loss = (inputs @ (weight - goal)).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]
