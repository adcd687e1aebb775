<?php
// The same for php -S: a connection for each request, and no extension that it could load. For test_servers.py.
$db = new PDO('sqlite:' . getenv('APP_DB'), null, null, [PDO::ATTR_TIMEOUT => 30, PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
if ($_SERVER['REQUEST_URI'] === '/write') {
    $db->prepare('INSERT INTO hits(pid) VALUES(?)')->execute([getmypid()]);
    $text = 'written';
} else {
    $text = (string) $db->query('SELECT max(id) FROM hits')->fetchColumn();
}
header('Content-Length: ' . strlen($text)); // the server closes the connection after each answer
echo $text;
