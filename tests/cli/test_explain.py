import pytest

from recis_lightning.cli.explain import explain

OPTIONS = ["trainer.max_epochs", "trainer.max_steps", "data.batch_size", "model.network"]
NETWORK = (
    'Parser key "model.network":\n  Type collections.abc.Callable[[recis_lightning.schema.Schema], '
    "torch.nn.modules.module.Module] expects a function or a callable class: "
)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "Subcommand 'fit' does not accept option 'trainer.max_epochz'",
            "there is no option trainer.max_epochz; did you mean trainer.max_epochs?",
        ),
        ("unrecognized arguments: --batch_sise=3", "there is no option batch_sise; did you mean data.batch_size?"),
        ("unrecognized arguments: --nope=3", "there is no option nope"),
        ("the following arguments are required: fit.data.schema", "data.schema is missing; write it into the recipe"),
        (
            "the following arguments are required: fit.model.network, fit.data.schema",
            "model.network and data.schema are missing; write them into the recipe",
        ),
        (
            "Parser key \"data.batch_size\":\n  Expected a <class 'int'>. Got value: many",
            "data.batch_size is 'many', need int",
        ),
        (
            'Parser key "trainer.limit_train_batches":\n  Does not validate against any of the Union subtypes\n'
            "  Errors:\n    - Expected a <class 'int'>\n    - Expected a <class 'float'>\n"
            "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: -x",
            "trainer.limit_train_batches is '-x', need int or float or none",
        ),
        (
            NETWORK
            + "Option 'hiden' is not accepted. Got value: Namespace(class_path='recis_lightning.models.DeepFM', "
            "init_args=Namespace(hiden=3))",
            "model.network: DeepFM has no option 'hiden'; did you mean hidden?",
        ),
        (
            NETWORK + "Parser key \"hidden\":\n    Expected a <class 'int'>. Got value: wide. Got value: "
            "Namespace(class_path='recis_lightning.models.DeepFM', init_args=Namespace(hidden='wide'))",
            "model.network.hidden is 'wide', need int",
        ),
        (
            NETWORK + "module 'recis_lightning.models' has no attribute 'DepFM'. Got value: Namespace(class_path='x')",
            "model.network: recis_lightning.models has no 'DepFM'; did you mean DeepFM?",
        ),
        (
            NETWORK + "Expected 'torch.optim.Adam' to be a subclass of <class 'Module'>.. Got value: Namespace(x=1)",
            "model.network: torch.optim.Adam is no Module",
        ),
        (
            'Parser key "model.network":\n\n  - Expected a path but DepFM either not accessible or invalid\n'
            "  - Expected a dot import path string: DepFM",
            "model.network: there is no class 'DepFM'; did you mean DeepFM?",
        ),
        (
            NETWORK + "Option 'class_path' is not accepted. Got value: Namespace(class_path='torch.nn.Module', "
            "init_args=Namespace(class_path='x'))",
            "model.network: 'class_path' is not accepted here; write class_path and init_args",
        ),
        ("Parser key \"config\": File does not exist: 'x.yaml'", "config: File does not exist: 'x.yaml'"),
    ],
)
def test_messages_are_told_in_the_words_that_matter(message: str, told: str) -> None:
    assert explain(message, OPTIONS) == told
