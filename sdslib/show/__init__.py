"""For a reader, with the templates beside them.

    style          the one look of every figure, and saving it
    figures        a table in, a figure out
    item_figures   what becomes of the items: modes of failure, margins, flips, calibration
    ablation_figures  the figures of an ablation
    published      the published studies as tables and figures, and the command that makes them
    live_plot      training as it goes: curves that grow
    run_picker     a live list of finished runs, to say which models are shown
    page           the door to jinja2: `render` fills templates/NAME.html.j2, `parts` has the macros
    pdf            a page as a PDF, with real text, bookmarks and page numbers
    atlas          every item of a set with what each model does to it, and the page of them
    failure_study  from score files or runs to the atlas of their failures
    flipped        items on which two runs differ, with their pictures
    seen           where models see an item's words, of models whose weights are here
    explain        one image and any captions: margins, words that decide, hardest re-orderings
    questions      any picture against any captions: what may be asked, what models answer
    batch          a folder or a CSV of pictures and captions: a table of scores
    views          answers as HTML
    panels         questions and answers as widgets, with keys and an upload of their own
    demo           what notebook 06 shows: one or the other
    report         from finished runs to the page and the PDF that are handed on
    modelcard      the card beside a run's weights, and the push to the Hub

Imports everything else of the library; nothing else imports it.
"""
