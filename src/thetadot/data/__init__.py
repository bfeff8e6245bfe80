"""What a network is trained on: Markov chains, anchors, teachers, labeled sequences, two-hop facts, real text."""

from typing import TYPE_CHECKING

from thetadot._lazy import on_demand

if TYPE_CHECKING:
    from thetadot.data.anchor import anchor_task as anchor_task
    from thetadot.data.chains import check_law as check_law
    from thetadot.data.chains import check_transition as check_transition
    from thetadot.data.chains import persistent_chain as persistent_chain
    from thetadot.data.chains import sample_sequences as sample_sequences
    from thetadot.data.chains import stationary_law as stationary_law
    from thetadot.data.sequences import is_separable as is_separable
    from thetadot.data.sequences import labeled_sequences as labeled_sequences
    from thetadot.data.teachers import observed_entries as observed_entries
    from thetadot.data.teachers import orthogonal_target as orthogonal_target
    from thetadot.data.teachers import ridge_samples as ridge_samples
    from thetadot.data.text import Corpus as Corpus
    from thetadot.data.text import read_contexts as read_contexts
    from thetadot.data.text import read_corpus as read_corpus
    from thetadot.data.two_hop import Facts as Facts
    from thetadot.data.two_hop import TwoHopTask as TwoHopTask
    from thetadot.data.two_hop import bag_data as bag_data
    from thetadot.data.two_hop import bags as bags
    from thetadot.data.two_hop import join as join
    from thetadot.data.two_hop import training_facts as training_facts
    from thetadot.data.two_hop import two_hop_task as two_hop_task
else:
    __getattr__, __dir__ = on_demand(
        __name__,
        names={
            "anchor": "anchor_task",
            "chains": "check_law check_transition persistent_chain sample_sequences stationary_law",
            "sequences": "is_separable labeled_sequences",
            "teachers": "observed_entries orthogonal_target ridge_samples",
            "text": "Corpus read_contexts read_corpus",
            "two_hop": "Facts TwoHopTask bag_data bags join training_facts two_hop_task",
        },
    )
