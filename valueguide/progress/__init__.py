"""How far along a task is (GVL): frames, shuffles, prompts, strict parsing, order correlation, backends."""
