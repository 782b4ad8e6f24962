-- Say that this node has ended in good order.
update {nodes} set stopped_at = {now}() where id = %(id)s
