-- Change what a customer says about a snapshot. ARGV[1]: JSON {account, id, fields{field: text}}.
-- Answers nil where there is none, also for another account's; else the snapshot as it is shown.
local ask = cjson.decode(ARGV[1])
local snapshot = read('snapshot:' .. ask.id)
if not snapshot or snapshot.account ~= ask.account or snapshot.status == 'deleting' then return nil end
if next(ask.fields) then write('snapshot:' .. ask.id, ask.fields) end
return show_snapshot(ask.id)
