"""Sentences the tiny tokenizers were trained on: enough scripts and words for pieces longer than one letter."""

from __future__ import annotations

SENTENCES = (
    # English
    "The parcel arrived two days late and the box was damaged.",
    "I would like to return this product because it does not work.",
    "The customer service was friendly and answered all my questions.",
    "This example is about shipping, delivery and transport.",
    "This example is about billing, payment and refunds.",
    "The concert begins at eight o'clock in the evening.",
    "Nobody was at home when the technician came to repair the heating.",
    "A man is playing the guitar on the street while people are listening.",
    "The woman isn't sleeping; she is reading a newspaper (the Sunday edition).",
    "The company announced record profits of $4.2 billion in 2023, up 15%.",
    "He didn't say that the train would be cancelled, did he?",
    "The weather is beautiful today, and the children are playing outside.",
    # German
    "Das Paket kam zwei Tage zu spät an und der Karton war beschädigt.",
    "Ich möchte dieses Produkt zurückgeben, weil es nicht funktioniert.",
    "Die Straße ist wegen Bauarbeiten bis nächsten Freitag gesperrt.",
    "Der Zug fährt heute nicht über München, sondern über Nürnberg.",
    # French
    "Le colis est arrivé avec deux jours de retard et la boîte était abîmée.",
    "L'hôtel n'était pas très propre, mais le petit-déjeuner était excellent.",
    "Où est-ce que je peux acheter un billet pour le théâtre ?",
    # Spanish
    "El paquete llegó dos días tarde y la caja estaba dañada.",
    "¿Cuándo sale el próximo tren para Sevilla? ¡Tenemos mucha prisa!",
    "Mañana los niños irán al colegio en autobús.",
    # Italian, Portuguese, Dutch, Polish, Romanian, Turkish, Vietnamese, Swahili
    "Il pacco è arrivato con due giorni di ritardo, però la città è bellissima.",
    "A encomenda chegou com dois dias de atraso e não funciona.",
    "Het pakket kwam twee dagen te laat aan en de doos was beschadigd.",
    "Paczka dotarła dwa dni później, a pudełko było zniszczone.",
    "Coletul a ajuns cu două zile întârziere și cutia era deteriorată.",
    "Paket iki gün geç geldi ve kutusu hasar görmüştü.",
    "Gói hàng đến muộn hai ngày và chiếc hộp đã bị hỏng.",
    "Kifurushi kilifika siku mbili baadaye na sanduku lilikuwa limeharibika.",
    # Russian, Bulgarian, Greek
    "Посылка пришла на два дня позже, и коробка была повреждена.",
    "Сегодня хорошая погода, и дети играют на улице.",
    "Пратката пристигна два дни по-късно и кутията беше повредена.",
    "Το δέμα έφτασε δύο μέρες αργότερα και το κουτί ήταν κατεστραμμένο.",
    # Arabic, Hebrew, Urdu, Hindi, Thai
    "وصل الطرد متأخرا يومين وكان الصندوق تالفا.",
    "الطقس جميل اليوم والأطفال يلعبون في الخارج.",
    "החבילה הגיעה באיחור של יומיים והקופסה הייתה פגומה.",
    "پارسل دو دن دیر سے پہنچا اور ڈبہ خراب تھا۔",
    "पार्सल दो दिन देर से पहुँचा और डिब्बा टूटा हुआ था।",
    "आज मौसम अच्छा है और बच्चे बाहर खेल रहे हैं।",
    "พัสดุมาถึงช้าไปสองวันและกล่องก็เสียหาย",
    # Chinese, Japanese, Korean
    "包裹晚到了两天，盒子也坏了。",
    "今天天气很好，孩子们在外面玩。",
    "荷物が二日遅れて届き、箱が壊れていました。",
    "今日は天気がいいので、子供たちは外で遊んでいます。",
    "소포가 이틀 늦게 도착했고 상자가 파손되어 있었습니다.",
    # Emoji and signs
    "Great product 😀👍🏽 — would buy again! 5/5 ★★★★★",
    "if (a < b && c > d) { return list[0] | x ^ ~y; } // 50% of \\n <b>bold</b> [x] `code` $5 + 3 * 2 = ...",
    "Don't write to me@example.com; see https://example.com/?q=a&b=c #help",
)
