"""What happens to a record, a file a step.

Read the files in this order:

::

    Kafka thread                                                              inference thread
    loop.py        step(), rebalances, drain
      fetch.py     records of our partitions enter the ledger
      admit.py     bytes -> request -> tokens -> job
      handoff.py   jobs wait for a batch (batch.py); a batch that is due  ->  infer.py   a batch -> a result of each job
      handoff.py   results are collected                                 <-
      resolve.py   what each record leads to: a result, another attempt, a dead letter, nothing
      publish.py   outputs and offsets leave in commit batches
      report.py    metrics, and the log line of each batch

``partition.py`` is what is known of one assigned partition. ``quarantine.py`` is for records that kill the process.
``set_wait.py`` is where requests wait for their label sets. ``topic_watch.py`` notices topics that were made again.
``served_model.py`` exchanges the model, and ``shadow.py`` lets a second one compute a sample. ``clocks.py`` is time.
``wiring.py`` gives the steps to each other.
"""
