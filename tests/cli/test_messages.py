from lightning_gpt.cli.messages import argument_names, class_names, distill, hint, nearest


def test_the_point_of_a_nested_message():
    message = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'lightning_gpt.tasks.Pretraining':
        Group 'config' does not accept option 'n_layers'
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'init_args': {'config': {'n_layers': 3}}}"""
    text, class_path = distill(message)
    assert text == "model (Pretraining): Group 'config' does not accept option 'n_layers'"
    assert class_path == "lightning_gpt.tasks.Pretraining"
    assert hint(text, class_path, []) == " - did you mean 'config.n_layer'?"


def test_an_ordinary_message_stays():
    text = "n_embd=128 is not divisible by n_head=3: choose n_embd=126"
    assert distill(text) == (text, None)
    assert hint(text, None, ["n_embd"]) == ""


def test_names_of_a_class_with_a_dataclass():
    names = argument_names("lightning_gpt.tasks.Pretraining")
    assert {"compile", "config", "config.n_layer", "optimizer"} <= set(names)
    assert "lightning_gpt.optim.AdamW" in class_names()


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("max_step", ["trainer.max_steps", "trainer.min_steps"]) == " - did you mean 'trainer.max_steps'?"
    assert nearest("qwertz", ["trainer.max_steps"]) == ""
    assert nearest("max_steps", ["trainer.max_steps"]) == ""
