"""Studio: a local page on which a trained model is looked at and asked, without writing code.

session   what the page shows, as plain values: model and cells in, tables and words out; knows no browser
views     these values as HTML and SVG
work      one long piece of work at a time, beside the server
page      controls, and what happens when they are used
server    who may see the page: this machine, with the token of this run
"""
