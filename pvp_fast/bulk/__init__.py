"""Tag millions of images with Ray Data, and go on where an interrupted run stopped.

The input is cut into partitions, each named by a hash of what it holds and how it is tagged. Ray
Data streams them through one actor a GPU (or a few on CPUs), each with its own Tagger, which
writes a partition's tags into a staging folder. Only this process, which holds a lock, moves them
to where they count::

    OUT/job.json                      artifact version and settings; another job is refused
    OUT/tags/part-HASH.parquet        its presence says that the partition is done
    OUT/failures/part-HASH.jsonl      images that could not be read, with the reason

A partition is therefore there whole or not at all, whatever is killed and whenever. An image that
is done again (its file has changed, or it could not be read before) is taken out of its old
partition when the new one is moved in.

An image may kill the process that reads it, by its memory or in a decoder. The process comes back,
and what it was at is then done image by image; one that kills it :data:`DEATHS` times when it is
alone is given up and counts as a failure. Processes that die before they are at an image, while
they load the model, end the run when there were several more of them than work at once.
"""

from pvp_fast.bulk.run import BulkReport, tag_dataset

__all__ = ["BulkReport", "tag_dataset"]
