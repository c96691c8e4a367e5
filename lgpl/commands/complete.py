"""`lgpl complete`: images that begin as a given one does, whose first rows of codes are kept while
the rest is drawn. The given one stands at the left."""

from lgpl import inference
from lgpl.commands import parsing
from lgpl.commands.reconstruct import opened
from lgpl.commands.sample import chosen
from lgpl.errors import UserError


def parser() -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(prog="lgpl complete", description=__doc__)
    p.add_argument("image", help="JPEG, PNG, WebP or GIF; its centre crop is taken")
    p.add_argument("out", help="image to write")
    parsing.add_generator(p)
    p.add_argument("--rows", type=int, help="of codes that are kept; half of them by default")
    parsing.add_ways(p, "what it shows", 4, "ways to complete it")
    parsing.add_sampling(p)
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    parsing.sampling_of(options)  # a mistake is said before anything is loaded
    parsing.require_positive(options, "count")
    import torch

    from lgpl.data.transforms import center_crop, to_image
    from lgpl.image_files import grid, image_path, save
    from lgpl.inference.editing import codes_of, keep

    out = image_path(options.out)
    original = opened(options.image)
    where = (options.checkpoint, options.tokenizer, inference.usable_device(options.device))
    decoder = parsing.decoder_of(options)
    module = inference.load_generator(*where, trust=options.trust, decoder=decoder)
    layout = module.model.layout
    if layout.rows == 1:
        raise UserError(f"The checkpoint draws codes of {layout}, which have no rows to keep.")
    kept = layout.rows // 2 if options.rows is None else options.rows
    if not 0 < kept < layout.rows:
        last = layout.rows - 1
        raise UserError(f"--rows must be from 1 to {last} of the {layout} codes, got {kept}.")
    prompts = chosen(module.model.condition, options.prompt, options.label, options.count)
    image = center_crop(original, module.image_size)
    drawn = torch.arange(layout.rows)[:, None].expand(-1, layout.columns) >= kept
    given = keep(module, codes_of(module, image), drawn)
    left = int((given < 0).sum())
    sampling = parsing.sampling_of(options, module.sampling.within(left))
    requests = inference.requests_for(prompts, sampling, options.seed, given)
    sink = inference.ImageList()
    inference.draw_into(module, requests, sink, options.count)
    captions = ["given", *(f"seed {request.seed}" for request in requests)]
    save(grid([image, *map(to_image, sink.images())], captions), out)
    said = parsing.in_words(len(requests), options.seed, sampling, module.decoder.summary())
    print(f"{out}: {kept} of {layout.rows} rows kept, {said}")
